/* SPDX-License-Identifier: MIT
 *
 * workload.c: lists of guest operations: text, enumeration.
 *
 * Purpose      Small workloads, exhaustively for length 1 and 2, seeded beyond.
 * Owns         Nothing.
 * Invariants   W1  Workload n of a geometry is the same for ever: it depends on the table of geometries and n alone.
 * Order        None.
 * Concurrency  Pure.
 * Failure      -EINVAL for text.
 * Tests        explorer_test.c
 */
#include "sim/workload.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "sim/luks.h"

/* Clusters that are allocated by one growth at most: each is a write and a table entry of the trace. */
#define GROWN_MAX 16u

/* ---- text ---- */

static bool has_range(char kind) { return strchr("wczudpl", kind) != NULL; }

static bool has_number(char kind) { return strchr("skaxKq", kind) != NULL; }
static bool has_two(char kind) { return has_range(kind) || strchr("vgb", kind); }
static bool is_snap(char kind) { return strchr("kax", kind) != NULL; }
static bool is_bitmap(char kind) { return strchr("AXCEHM", kind) != NULL; }
/* May it run beside others? 'i' is a scrub, 'q' one that is cancelled, 'y' a compaction. */
static bool is_request(char kind) { return has_range(kind) || strchr("fiqy", kind); }

static int parse_op(const char *s, struct sim_wop *op)
{
    char kind;
    unsigned off = 0, len = 0, to = 0;
    int n = 0;
    s += strspn(s, " ");
    op->beside = *s == '&';
    op->behind = *s == '~';
    s += strspn(s, "&~ ");
    if (sscanf(s, "%c%n", &kind, &n) != 1 || !strchr("wczudfsgorptkaxvAXCEHMiqynjJbKl", kind))
        return -EINVAL;
    s += n;
    n = 0;
    if (has_two(kind) && (sscanf(s, "%u %u%n", &off, &len, &n) != 2 || !len))
        return -EINVAL;
    if (has_number(kind) && sscanf(s, "%u%n", &len, &n) != 1)
        return -EINVAL;
    if (is_bitmap(kind) && (kind == 'M' ? sscanf(s, "%u %u%n", &off, &len, &n) != 2 : sscanf(s, "%u%n", &off, &n) != 1))
        return -EINVAL;
    if (is_bitmap(kind) && (off >= SIM_BITMAPS || len >= SIM_BITMAPS))
        return -EINVAL;
    s += n;
    n = 0;
    if (kind == 'l' && sscanf(s, "%u%n", &to, &n) != 1)
        return -EINVAL;
    s += n;
    if (s[strspn(s, " \n")])
        return -EINVAL;
    op->kind = kind;
    op->off = off;
    op->len = len;
    op->to = to;
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
        at += (size_t)snprintf(buf + at, bytes - at, "%s%s%c", i ? "; " : "", o->beside ? "& " : o->behind ? "~ " : "", o->kind);
        if (has_two(o->kind))
            at += (size_t)snprintf(buf + at, bytes - at, " %u %u", o->off, o->len);
        if (o->kind == 'l')
            at += (size_t)snprintf(buf + at, bytes - at, " %u", o->to);
        if (is_bitmap(o->kind))
            at += (size_t)snprintf(buf + at, bytes - at, o->kind == 'M' ? " %u %u" : " %u", o->off, o->len);
        if (has_number(o->kind))
            at += (size_t)snprintf(buf + at, bytes - at, " %u", o->len);
    }
}

static bool in_window(const struct sim_geom *g, const struct sim_wop *o)
{
    uint64_t off = (uint64_t)o->off * SIM_SECTOR, len = (uint64_t)o->len * SIM_SECTOR;
    for (unsigned i = 0; i < g->windows; i++)
        if (off >= g->window[i].off && off + len <= g->window[i].off + g->window[i].len)
            return true;
    return false;
}

/* What is allocated reads zeros without saying so, and only windows are read: the new part lies in one. */
static bool grows_well(const struct sim_geom *g, uint32_t from, uint32_t to)
{
    const struct sim_wop part = { .off = from, .len = to - from };
    return to - from <= GROWN_MAX * ((1ull << g->cluster_bits) / SIM_SECTOR) && in_window(g, &part);
}

/* Which snapshots there would be, and how large (sectors; 0: not there). */
struct kept { uint64_t size[SIM_SNAPS_MAX]; bool any; };

static bool snap_fits(const struct sim_geom *g, const struct sim_wop *o, struct kept *k, uint64_t *size)
{
    if (!sim_geom_snaps(g) || o->len >= SIM_SNAPS_MAX - 1)
        return false;
    k->any = true;
    uint64_t *its = &k->size[o->len];
    if (o->kind == 'k') {
        if (!o->len || *its)
            return false;
        *its = *size;
    } else if (!*its) {
        return false;
    } else if (o->kind == 'x') {
        *its = 0;
    } else if (g->fill_to && !o->len) {
        return false;
    } else {
        *size = *its;
    }
    return true;
}

/* What an amend changes: 0 the version, 1 the width of the counts, 2 lazy refcounts (1: off, 2: on), 3 the raw bit (off). */
static bool may_amend(const struct sim_geom *g, uint32_t what)
{
    return what < 2 ? g->amend : what == 2 ? g->lazy && !g->scrub : what == 3 && g->data_raw;
}

static bool key_fits(const struct sim_geom *g, uint32_t what, unsigned *keys)
{
    if (!g->luks || what >= SIM_KEY_CHANGES || sim_key_changes[what].from != *keys)
        return false;
    *keys = sim_key_changes[what].to;
    return true;
}

bool sim_workload_fits(const struct sim_workload *l, const struct sim_geom *g)
{
    unsigned keys = SIM_KEY_FIRST;
    uint64_t size = g->size / SIM_SECTOR;
    struct kept kept = { .size = { g->snapshot ? size : 0 } };
    bool v2 = g->version == 2;
    for (unsigned i = 0; i < l->count; i++) {
        const struct sim_wop *o = &l->op[i];
        if (o->kind == 'K' && !key_fits(g, o->len, &keys))
            return false;
        if (is_snap(o->kind) && !snap_fits(g, o, &kept, &size))
            return false;
        if (has_range(o->kind) && (!range_inside(o->off, o->len, size) || !in_window(g, o)))
            return false;
        const struct sim_wop target = { .off = o->to, .len = o->len };
        if (o->kind == 'l' && (g->table || o->to == o->off || !range_inside(o->to, o->len, size) || !in_window(g, &target)))
            return false;
        uint32_t c = (uint32_t)((1ull << g->cluster_bits) / SIM_SECTOR);
        if (o->kind == 'c' && (o->off % c || (o->len % c && o->off + o->len != size)))
            return false;
        bool request = is_request(o->kind);
        if ((strchr("iq", o->kind) && !g->scrub) || (o->kind == 'q' && !g->table) || (o->kind == 'y' && !g->compact))
            return false;
        if ((o->beside || o->behind) && !request)
            return false;
        if (o->beside && (i == 0 || l->op[i - 1].behind || !is_request(l->op[i - 1].kind)))
            return false;
        if ((o->kind == 'v' && !may_amend(g, o->off)) || (strchr("njJ", o->kind) && !g->chain) || (o->kind == 'J' && g->table) || (o->kind == 'd' && g->chain))
            return false;
        if (o->kind == 'b' && !g->state)
            return false;
        if (g->table && (o->kind == 'g' || (o->kind == 's' && o->len < size)))
            return false;                        /* never shrinks, knows no preallocation */
        if (o->kind == 'g' && (g->backing || o->off < 1 || o->off > 3 || o->len <= size || !grows_well(g, (uint32_t)size, o->len)))
            return false;
        if (o->kind == 's' || o->kind == 'g') {
            if ((g->one_write_space && o->kind == 's') || o->len > g->size_max / SIM_SECTOR || !o->len)
                return false;
            size = o->len;
        }
        v2 |= o->kind == 'v' && o->off == 0;
        if (o->kind == 's' && kept.any && v2)        /* has to be refused when it shrinks */
            return false;
    }
    return l->count > 0;
}

/* ---- alphabet ---- */

struct letters { struct sim_wop *op; unsigned n, max; bool no_discards; };

static void letter(struct letters *a, char kind, uint64_t off, uint64_t len)
{
    if (kind == 'd' && a->no_discards)
        return;
    if (a->op && a->n < a->max)
        a->op[a->n] = (struct sim_wop){ .kind = kind, .off = (uint32_t)off, .len = (uint32_t)len };
    a->n++;
}

static void clone_letter(struct letters *a, uint64_t off, uint64_t len, uint64_t to)
{
    letter(a, 'l', off, len);
    if (a->op && a->n <= a->max)
        a->op[a->n - 1].to = (uint32_t)to;
}

/* Subclusters: by the patterns of entry_of_sub in image.c. */
static void sub_letters(struct letters *a, uint64_t c)
{
    uint64_t u = c / 32, in = u > 1 ? 1 : 0;
    letter(a, 'w', c + 2 * u, u);                    /* nothing there: one, whole */
    letter(a, 'w', c + 2 * u + in, u - in);          /* and a part of one */
    letter(a, 'w', 2 * c + 3 * u + in, 10 * u);      /* data, absent, data, zero, in one write */
    letter(a, 'w', 2 * c + 13 * u, 3 * u - in);
    letter(a, 'w', 6 * c + 22 * u + in, 4 * u);      /* zero, then absent, in a cluster that is there */
    letter(a, 'w', 7 * c + in, u);                   /* zero, with space, beside data */
    letter(a, 'w', 5 * c - 2 * u, c);                /* absent in a cluster that is there, then nothing there */
    letter(a, 'z', 2 * c + u, 5 * u);
    letter(a, 'z', 4 * c + u, 2 * u);                /* a part of a compressed one */
    letter(a, 'u', 2 * u, 30 * u);
    letter(a, 'd', 0, 16 * u);                       /* two halves make a whole */
    letter(a, 'd', 16 * u, 16 * u);
    letter(a, 'd', 7 * c + 2 * u, 2 * c);
}

unsigned sim_alphabet(const struct sim_geom *g, struct sim_wop *op, unsigned max)
{
    struct letters a = { op, 0, max, g->chain };
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
    if (g->packs) {
        letter(&a, 'c', 0, c);
        letter(&a, 'c', 1 * c, 2 * c);           /* nothing there, data */
        letter(&a, 'c', 4 * c, c);               /* compressed */
        letter(&a, 'c', 2 * c, 6 * c);           /* across all kinds */
        letter(&a, 'c', half + c, 4 * c);
        letter(&a, 'c', cross - 2 * c, 4 * c);   /* across two tables */
        letter(&a, 'c', end - c, c);
    }
    if (!g->table) {
        clone_letter(&a, 0, 2 * c, half);        /* data, none: to where nothing is */
        clone_letter(&a, 2 * c, c, 0);           /* data over data */
        clone_letter(&a, cross - 2 * c, 4 * c, half + 2 * c);      /* from two tables */
        clone_letter(&a, tail, c + part, half + c + tail);         /* parts at both ends */
    }
    letter(&a, 'f', 0, 0);
    if (g->scrub)
        letter(&a, 'i', 0, 0);
    for (unsigned i = 0; g->scrub && g->table && i < 4; i++)
        letter(&a, 'q', 0, i);
    if (g->compact)
        letter(&a, 'y', 0, 0);
    if (g->chain) {
        letter(&a, 'n', 0, 0);                   /* commit */
        letter(&a, 'j', 0, 0);                   /* rebase to the other backing image */
        if (!g->table)
            letter(&a, 'J', 0, 0);               /* the same, and what is equal there is dropped */
    }
    letter(&a, 'o', 0, 0);
    letter(&a, 'r', 0, 0);
    if (g->amend) {
        letter(&a, 'v', 0, 2);
        letter(&a, 'v', 0, 3);
        letter(&a, 'v', 1, 4);
        letter(&a, 'v', 1, 16);
        letter(&a, 'v', 1, 64);
    }
    if (may_amend(g, 2)) {
        letter(&a, 'v', 2, 1);
        letter(&a, 'v', 2, 2);
    }
    if (may_amend(g, 3))
        letter(&a, 'v', 3, 1);
    if (g->state) {
        letter(&a, 'b', 1, 1);                   /* a part of the first clusters */
        letter(&a, 'b', (span - 2) * c, 4 * c);  /* across two tables */
        letter(&a, 'b', 70 * span * c, 3);       /* a longer L1 table */
    }
    if (g->luks)
        for (unsigned what = 0; what < SIM_KEY_CHANGES; what++)
            letter(&a, 'K', 0, what);
    if (g->bitmaps) {
        letter(&a, 'A', 1, 0);
        letter(&a, 'X', 0, 0);
        letter(&a, 'C', 0, 0);
        letter(&a, 'H', 0, 0);
        letter(&a, 'M', 1, 0);
    }
    if (!g->one_write_space)
        letter(&a, 's', 0, g->size_max / SIM_SECTOR);
    if (!g->one_write_space && !g->table) {      /* QED grows only */
        letter(&a, 's', 0, g->size / SIM_SECTOR + 3);
        letter(&a, 's', 0, half);
        letter(&a, 's', 0, 5 * c + tail + 1);
        letter(&a, 's', 0, g->size / SIM_SECTOR - c - tail);
    }
    if (g->size_max > g->size && !g->table) {
        uint64_t grown = min_u64(g->size / SIM_SECTOR + GROWN_MAX * c, g->size_max / SIM_SECTOR);
        for (unsigned i = 0; i < g->windows; i++)
            if (g->window[i].off <= g->size && g->window[i].off + g->window[i].len > g->size)
                grown = min_u64(grown, (g->window[i].off + g->window[i].len) / SIM_SECTOR);
        for (unsigned mode = 1; mode <= 3 && !g->backing; mode++)      /* metadata, falloc, full */
            letter(&a, 'g', mode, mode == 2 ? min_u64(g->size / SIM_SECTOR + 3 * c, grown) : grown);
    }
    if (sim_geom_snaps(g)) {
        letter(&a, 'k', 0, 1);
        letter(&a, 'a', 0, !g->snapshot || g->fill_to);
        letter(&a, 'x', 0, !g->snapshot);
    }
    if (g->sub)
        sub_letters(&a, c);
    return a.n;
}

/* ---- enumeration ---- */

#define LETTERS_MAX 96u

static void push(struct sim_workload *l, struct sim_wop op)
{
    if (l->count < SIM_WOPS_MAX)
        l->op[l->count++] = op;
}

static const struct sim_wop flush_op = { .kind = 'f' };

/* Sequences with a purpose; a, b, c stand for places that do not touch (a holds data in the beginning, b and c hold
 * nothing), n for a few clusters. */
static const char *const templates[] = {
    "d a; t; w b; w c; f",                               /* freed space is used again before and after it is durable */
    "d a; f; t; w b; f",
    "d a; f; w b; f; w c",
    "w a; ~ w a; d a; f; w b; f; t",                     /* a writer is still inside when its cluster goes */
    "w a; ~ w a; d a; f; t; w b; f; t",
    "w a; f; ~ w a; d a; f; w b; w c; f",
    "~ w a; u a; f; t; w b; w c; f",
    "~ p a; d a; f; t; w b; f",
    "w a; ~ f; w b; f",                                  /* a flush meets a flush */
    "~ w a; ~ f; w b; ~ f; w c; f",
    "~ w a; z a; w a; f",                                /* a writer is still inside when its cluster turns zero */
    "w b; f; ~ w b; z b; w b; f; t",
    "w b; d b; w b; f",
    "w b; w c; d b; f; w b; o",
    "d a; w a; f; d a; f; w a",
    "u a; t; w b; ~ d b; w c; f",
    "w a; w b; f; d a; d b; t; f; w c; w a; f",
    "w b; d a; f; t; w c; f; r; w a; f",
    /* clones: written at both places, given up, closed */
    "w a; l a b; w a; f; w b; f",
    "w a; f; l a b; f; w a; t; w c; f; o",
    "w a; f; ~ w a; l a b; ~ w a; f; w c; f",
    "w a; ~ l a b; ~ w a; ~ d a; f; t; w c; f",
    "w b; f; l a b; w c; f; t; w a; f",
    "l a b; l b c; d a; f; t; w b; f; o; w c; f",
    "l a b; d b; f; t; w c; f; ~ l a c; u a; f; o",
    /* compressed clusters; plain writes where there are none */
    "c a; f; c a; w b; w c; f",                          /* rewritten, and the old place wanted at once */
    "c a; f; c a; t; w b; ~ f; w c; f; t",
    "c b; c c; f; w b; d c; t; w a; f; t; w b; f",
    "c b; d b; f; t; w c; f; c b; f",                    /* all pieces go while their cluster is being filled */
    "c b; w b; f; t; w c; w a; c b; f; t; w c; f",
    "~ c b; ~ c c; d b; f; t; c b; f",
    "c a; ~ p a; c a; f; t; c b; f; p b",
    "~ c b; ~ c c; f; o; c b; f; d c; f; t; w c; f",
    /* SNAP_TEMPLATES with snapshots */
    "k 1; w a; f; a 1; w a; f",                          /* what is shared is written, before and after */
    "k 1; w a; w b; f; x 1; w a; f",
    "w b; k 1; d b; f; t; w c; f; a 1; w b",
    "k 1; w a; k 2; u a; f; x 1; w b; f; a 2; w a",
    "k 1; k 2; w a; x 1; w a; x 2; w a; f",
    "w a; ~ w a; w b; k 1; ~ w a; d b; f; w c; x 1; f; w b",
    "k 1; d a; f; a 1; x 1; t; w b; w c; f",
    "k 1; w a; o; a 1; o; w a; x 1; f",
    "a 0; w a; f; k 1; w b; x 0; w a; f",
    "x 0; w a; f; t; w b; w c; f",
    "w a; l a b; k 1; w a; f; x 1; t; w b; f; o",
    "k 1; l a b; w a; f; a 1; w b; f",
};

/* The same with bitmaps: every action beside writes, closes and crashes in between. */
static const char *const bitmap_templates[] = {
    "w a; A 1; w b; f; H 1; w c; f; o; w a",
    "A 1; ~ w a; C 0; w b; f; o",
    "w a; o; w b; f; C 0; w a; f",
    "~ w a; ~ w b; A 1; w c; f; X 0; w a; o",
    "A 1; A 2; w a; H 2; M 2 0; w b; o; X 1; w c; f",
    "H 0; w a; f; E 0; w b; f; o; w c",
    "X 0; w a; A 0; w b; f; o; C 0; w c",
    "~ w a; H 0; ~ w b; E 0; ~ w c; M 1 0; f",
    "A 1; X 0; X 1; A 2; w a; o; w b; f",
    "w a; w b; w c; f; o; d a; f; z b; f; o",
    "A 1; M 1 0; w a; f; r; w b; f; C 1; o",
    "k 1; w a; f; a 1; w b; f; o",
    "k 1; w a; H 0; A 1; C 1; f; a 1; w c; f; a 1; x 1; f",
    "k 1; w a; s +; w c; f; C 0; a 1; w b; f; o",        /* with another size, s: the largest, or a small one */
    "s +; k 1; w a; f; s -; H 0; w b; f; a 1; w c; f; A 1",
};

/* The same where the version changes. */
static const char *const amend_templates[] = {
    "k 1; z a; w b; f; v 2; w a; f; a 1; w c; f",        /* zero clusters of a snapshot alone, and shared ones */
    "z a; w b; k 1; v 2; w a; f; x 1; t; w c; f",
    "w a; f; z a; k 1; w a; k 2; v 2; d a; f; x 1; w b; f; a 2; w a",
    "w a; z b; k 1; w b; v 2; v 3; z a; k 2; v 2; x 1; f; w c; f",
    "w a; f; k 1; z a; k 2; x 1; w a; f; v 2; w b; w c; f; x 2; t; w c; f",
};

/* The VM state between writes, resizes over it, snapshots and closes. */
static const char *const state_templates[] = {
    "b; w a; f; s +; w b; f", "w a; b; f; b; d a; f; t; w c; f", "b; k 1; b; w a; f; a 1; b; f; x 1; t; w b; f", "k 1; b; f; a 1; w a; f; s +; f",
    "b; ~ w b; ~ w c; b; f; o; b; s -; f; s +; w c; f", "~ w a; b; ~ f; b; w b; f; r; b; f", "w b; s -; b; f; s +; f; b; w a; o; w c; f",
};

/* Key slots between writes, closes and crashes. */
static const char *const key_templates[] = {
    "K 0; w a; f; K 1; w b; f", "w a; K 3; o; w b; f; K 1; o; w c", "K 2; w a; f; o; K 0; K 1; K 2; f", "~ w a; K 3; ~ w b; K 1; d a; f; t; w c; f",
    "K 2; K 2; w a; o; K 3; f; r; w b; f", "s +; K 0; w b; f; s -; K 1; w c; o",
};

/* Commit and rebase between writes, closes and crashes. */
static const char *const chain_templates[] = {
    "n; w a; f; n; o", "j; J; w a; f; J; f", "z a; w b; f; J; w c; f; J; o", "w a; J; w b; J; J; f", "j; w a; f; j; f; w b", "w b; f; n; w b; f; w c; n; f", "u a; z b; f; j; n; w a; f", "w c; n; j; w c; f; n; j; f",
    "u b; n; z c; n; w a; f; j", "w a; n; n; j; j; w b; f; o", "j; n; w a; w b; o; n; w c; f", "w b; w c; f; r; j; f; r; n; f", "z a; u b; j; f; z c; n; f; w b",
};

static struct sim_wop place(const struct sim_geom *g, struct prng *p, char name)
{
    uint64_t c = (1ull << g->cluster_bits) / SIM_SECTOR, half = g->window[0].len / 2 / SIM_SECTOR;
    struct sim_wop op = { .len = (uint32_t)(c * (1 + prng_below(p, 3))) };
    uint64_t slots = half / (8 * c) ? half / (8 * c) : 1;
    op.off = (uint32_t)(prng_below(p, slots) * 8 * c);
    if (name == 'b')
        op.off = (uint32_t)half;
    if (name == 'c')
        op.off = (uint32_t)(half + 3 * c);
    return op;
}

#define TEMPLATES (sizeof templates / sizeof templates[0])
#define SNAP_TEMPLATES 12u

static void any_template(const struct sim_geom *g, struct prng *p, unsigned count, struct sim_workload *l)
{
    const char *t = g->bitmaps && prng_one_in(p, 2) ? bitmap_templates[prng_below(p, sizeof bitmap_templates / sizeof bitmap_templates[0])]
                                                    : templates[prng_below(p, count)];
    if (g->amend && prng_one_in(p, 2))
        t = amend_templates[prng_below(p, sizeof amend_templates / sizeof amend_templates[0])];
    if (g->state && !prng_one_in(p, 3))
        t = state_templates[prng_below(p, sizeof state_templates / sizeof state_templates[0])];
    if (g->luks && prng_one_in(p, 2))
        t = key_templates[prng_below(p, sizeof key_templates / sizeof key_templates[0])];
    if (g->chain)
        t = chain_templates[prng_below(p, sizeof chain_templates / sizeof chain_templates[0])];
    struct sim_wop a = place(g, p, 'a'), b = place(g, p, 'b'), c = place(g, p, 'c');
    l->count = 0;
    if (g->scrub && prng_one_in(p, 2)) {
        bool cut = g->table && prng_one_in(p, 3);
        uint32_t steps = g->table ? (uint32_t)prng_below(p, 8) : 0;
        push(l, (struct sim_wop){ .kind = cut ? 'q' : 'i', .behind = true, .len = cut ? steps : 0 });
    }
    if (g->compact && prng_one_in(p, 2))
        push(l, (struct sim_wop){ .kind = 'y', .behind = true });
    for (; *t; t += strcspn(t, ";") + (t[strcspn(t, ";")] == ';')) {
        struct sim_wop op = { 0 };
        t += strspn(t, " ");
        op.behind = *t == '~';
        t += strspn(t, "~ ");
        char kind = *t, name = t[1] == ' ' ? t[2] : 0;
        if (is_bitmap(kind)) {
            op.off = (uint32_t)(name - '0');
            op.len = kind == 'M' ? (uint32_t)(t[4] - '0') : 0;
        } else if (name)
            op = (struct sim_wop){ .behind = op.behind, .off = name == 'a' ? a.off : name == 'b' ? b.off : c.off, .len = name == 'a' ? a.len : name == 'b' ? b.len : c.len };
        if (kind == 'l') {
            const struct sim_wop *to = t[4] == 'a' ? &a : t[4] == 'b' ? &b : &c;
            op.to = to->off;
            op.len = (uint32_t)min_u64(op.len, to->len);
        }
        if (kind == 's')
            op = (struct sim_wop){ .len = (uint32_t)((name == '+' ? g->size_max : min_u64(g->window[0].len, g->size - (1ull << g->cluster_bits))) / SIM_SECTOR) };
        if (kind == 'b')
            op = (struct sim_wop){ .off = (uint32_t)prng_below(p, prng_one_in(p, 3) ? 9000 : 140), .len = 1 + (uint32_t)prng_below(p, 70) };
        if (is_snap(kind) || kind == 'v' || kind == 'K')
            op = (struct sim_wop){ .len = (uint32_t)(name - '0') };
        op.kind = kind == 'c' && !g->packs ? 'w' : kind;
        if (kind == 'w' && prng_one_in(p, 4))
            op.len = 1 + (uint32_t)prng_below(p, op.len);
        push(l, op);
    }
}

/* Requests that meet in a cluster, in other subclusters each. */
static void in_one_cluster(const struct sim_geom *g, struct prng *p, struct sim_workload *l)
{
    uint32_t c = (1u << g->cluster_bits) / SIM_SECTOR, u = c / 32, base = (uint32_t)prng_below(p, 8) * c;
    if (prng_one_in(p, 2))
        base += (uint32_t)(g->window[0].len / 2 / SIM_SECTOR);
    l->count = 0;
    for (unsigned i = 0, n = 2 + (unsigned)prng_below(p, 3); i < n; i++) {
        struct sim_wop op = { .kind = prng_one_in(p, 6) ? 'd' : prng_one_in(p, 5) ? 'z' : 'w', .beside = i > 0 };
        op.off = base + i * (c / n) / u * u + (uint32_t)prng_below(p, u);
        op.len = op.kind == 'w' ? 1 + (uint32_t)prng_below(p, c / n - 2 * u) : u * (1 + (uint32_t)prng_below(p, 3));
        push(l, op);
    }
    push(l, flush_op);
    push(l, (struct sim_wop){ .kind = 'p', .off = base, .len = c });
}

/* A compaction under way, and requests in what it moves: the end of what is mapped. Before that the file may grow, and lose most of
 * it again. */
static void in_the_tail(const struct sim_geom *g, struct prng *p, struct sim_workload *l)
{
    uint32_t c = (1u << g->cluster_bits) / SIM_SECTOR, end = (uint32_t)(min_u64(g->window[0].len, g->size) / SIM_SECTOR / c * c);
    uint32_t base = end - c * (1 + (uint32_t)prng_below(p, 12)), room = c * (1 + (uint32_t)prng_below(p, 4));
    l->count = 0;
    room = (uint32_t)min_u64(room, end - base);
    if (prng_one_in(p, 4)) {
        push(l, (struct sim_wop){ .kind = 'w', .off = 0, .len = end });
        push(l, (struct sim_wop){ .kind = 'd', .off = c * (uint32_t)prng_below(p, 16), .len = end / 2 });
        if (prng_one_in(p, 2))
            push(l, flush_op);
        if (prng_one_in(p, 2)) {
            push(l, (struct sim_wop){ .kind = 'y' });
            return;
        }
    } else if (prng_one_in(p, 4)) {
        push(l, (struct sim_wop){ .kind = 'd', .off = 0, .len = 8 * c });
    }
    push(l, (struct sim_wop){ .kind = 'y', .behind = true });
    for (unsigned i = 0, n = 4 + (unsigned)prng_below(p, 11); i < n; i++) {
        struct sim_wop op = { .kind = prng_one_in(p, 12) ? 'd' : prng_one_in(p, 4) ? 't' : prng_one_in(p, 12) ? 'f' : 'w' };
        if (has_range(op.kind)) {
            op.behind = !prng_one_in(p, 4);
            op.off = base + (uint32_t)prng_below(p, room);
            op.len = 1 + (uint32_t)prng_below(p, prng_one_in(p, 2) ? 1 : base + room - op.off);
        }
        push(l, op);
    }
    push(l, (struct sim_wop){ .kind = 'o' });            /* waits for all of them */
    push(l, (struct sim_wop){ .kind = 'p', .off = base, .len = room });
}

static void from_template(const struct sim_geom *g, struct prng *p, struct sim_workload *l)
{
    if (g->sub && prng_one_in(p, 3)) {
        in_one_cluster(g, p, l);
        if (sim_workload_fits(l, g))
            return;
    }
    if (g->compact && prng_one_in(p, 2)) {
        in_the_tail(g, p, l);
        if (sim_workload_fits(l, g))
            return;
    }
    do {
        any_template(g, p, TEMPLATES, l);
    } while (!sim_workload_fits(l, g));
}

static struct sim_wop any_op(const struct sim_geom *g, struct prng *p, const struct sim_wop *abc, unsigned n)
{
    uint64_t c = (1ull << g->cluster_bits) / SIM_SECTOR, end = min_u64(g->window[0].len, g->size) / SIM_SECTOR;
    struct sim_wop op = abc[prng_below(p, n)];
    if (has_range(op.kind) && prng_one_in(p, 2)) {       /* the same at another place, of another length */
        op.len = (uint32_t)(prng_one_in(p, 2) ? c * (1 + prng_below(p, 4)) : 1 + prng_below(p, 2 * c));
        if (op.kind == 'c')
            op.len = (uint32_t)round_up(op.len, c);
        op.off = (uint32_t)prng_below(p, end - op.len);
        if (op.kind == 'l')
            op.to = (uint32_t)round_down(prng_below(p, end - op.len), prng_one_in(p, 4) ? 1 : c);
        if (op.kind == 'c' || prng_one_in(p, 2))
            op.off = (uint32_t)round_down(op.off, op.kind != 'c' && g->sub && prng_one_in(p, 2) ? c / 32 : c);
    }
    return op;
}

void sim_workload_meeting(const struct sim_geom *g, uint64_t n, struct sim_workload *l)
{
    struct prng p;
    prng_init(&p, hash_mix64(n) ^ 0x99);
    do {
        if (g->compact && prng_one_in(&p, 2))
            in_the_tail(g, &p, l);
        else
            any_template(g, &p, TEMPLATES - SNAP_TEMPLATES, l);
    } while (!sim_workload_fits(l, g));
}

static void longer(const struct sim_geom *g, uint64_t n, const struct sim_wop *abc, unsigned letters, struct sim_workload *l)
{
    struct prng p;
    prng_init(&p, hash_mix64(n) ^ 0x77);
    if (prng_one_in(&p, 2)) {
        from_template(g, &p, l);
        return;
    }
    do {
        l->count = 0;
        unsigned len = 3 + (unsigned)prng_below(&p, 4);
        for (unsigned i = 0; i < len; i++) {
            struct sim_wop op = any_op(g, &p, abc, letters);
            if (prng_one_in(&p, 8))
                op = (struct sim_wop){ .kind = 't' };
            if (i && is_request(op.kind) && prng_one_in(&p, 2))
                op.beside = !l->op[l->count - 1].behind && is_request(l->op[l->count - 1].kind);
            if (!op.beside && is_request(op.kind) && prng_one_in(&p, op.kind == 'i' || op.kind == 'y' ? 2 : 5))
                op.behind = true;
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

/* Keys that one of them erases, and none of them adds before, are there from the beginning. */
static void need_key(struct sim_workload *l, struct sim_wop first, struct sim_wop second)
{
    if ((first.kind == 'K' && first.len == 1) || (second.kind == 'K' && second.len == 1 && first.kind != 'K'))
        push(l, (struct sim_wop){ .kind = 'K', .len = l->count % 2 ? 3 : 0 });
}

/* A snapshot that one of them applies or deletes, and none of them makes before, is there from the beginning. */
static void need_snapshot(struct sim_workload *l, struct sim_wop first, struct sim_wop second)
{
    bool one = first.len == 1 && strchr("ax", first.kind), two = second.len == 1 && strchr("ax", second.kind) && first.kind != 'k';
    if (one || two)
        push(l, (struct sim_wop){ .kind = 'k', .len = 1 });
}

void sim_workload_nth(const struct sim_geom *g, uint64_t n, struct sim_workload *l)
{
    struct sim_wop abc[LETTERS_MAX];
    unsigned letters = sim_alphabet(g, abc, LETTERS_MAX);
    ASSERT(letters <= LETTERS_MAX);
    uint64_t ones = letters * 2, twos = (uint64_t)letters * letters * 2;
    l->count = 0;
    if (g->hurt) {
        push(l, (struct sim_wop){ .kind = 'r' });
        return;
    }
    if (n < ones) {
        need_snapshot(l, abc[n / 2], abc[n / 2]);
        need_key(l, abc[n / 2], abc[n / 2]);
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
    need_snapshot(l, abc[n / 2 / letters], abc[n / 2 % letters]);
    need_key(l, abc[n / 2 / letters], abc[n / 2 % letters]);
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
