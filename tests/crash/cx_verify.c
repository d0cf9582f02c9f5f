/* SPDX-License-Identifier: MIT
 *
 * cx_verify.c: verification of one state.
 *
 * Purpose      RELIABILITY 3.6 (5), for this operations.
 * Owns         Buffers for one disk.
 * Invariants   Recovery runs with a fixed seed per cut, so a violation repeats.
 * Order        check, contents, probes, check, contents, repair, check, contents.
 * Concurrency  One coroutine of the world.
 * Failure      The first thing that is wrong ends the verification.
 * Tests        every mutant must be caught by one of these steps.
 */
#include "cx_verify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define PROBES 3u
#define PROBE_SECTORS 3u
#define PROBE_VERSION 0x70000000u

struct ver {
    struct cx_world *w;
    const struct cx_model *m;
    const struct cx_work *k;
    uint64_t cut, snapshots, size;
    bool nested;
    struct cx_verdict *v;
    uint8_t *before, *after;
    struct fmt_check_result last;
};

static void bad(struct ver *s, const char *fmt, ...)
{
    va_list ap;
    if (s->v->bad)
        return;
    s->v->bad = true;
    va_start(ap, fmt);
    vsnprintf(s->v->why, sizeof s->v->why, fmt, ap);
    va_end(ap);
}

static void check(struct co *co, struct ver *s, unsigned fix, const char *when)
{
    struct byre_err err = { .text = "" };
    struct fmt_check_opts o = { .fix = fix };
    s->last = (struct fmt_check_result){ 0 };
    if (s->v->bad)
        return;
    if (cx_open(co, s->w, fix == 0, true, &err) < 0) {
        bad(s, "%s: cannot be opened to check: %s", when, err.text);
        return;
    }
    struct fmt_image *im = graph_image(s->w->node);
    if (im->ops->check(co, im, &o, &s->last, &err) < 0)
        bad(s, "%s: check: %s", when, err.text);
    int r = cx_close(co, s->w);
    if (r < 0)
        bad(s, "%s: close after check: %d", when, r);
    if (!fix && (s->last.corruptions || s->last.check_errors))
        bad(s, "%s: %" PRIu64 " corruptions, %" PRIu64 " check errors", when, s->last.corruptions, s->last.check_errors);
}

/* Opens read-only and reads the whole disk into out. */
static void read_disk(struct co *co, struct ver *s, uint8_t *out, const char *when)
{
    struct byre_err err = { .text = "" };
    if (s->v->bad)
        return;
    if (cx_open(co, s->w, true, false, &err) < 0) {
        bad(s, "%s: cannot be opened: %s", when, err.text);
        return;
    }
    s->size = graph_length(s->w->node);
    int r = cx_read_all(co, s->w, out);
    int c = cx_close(co, s->w);
    if (r < 0 || c < 0)
        bad(s, "%s: read %d, close %d", when, r, c);
}

static void judge(struct ver *s)
{
    if (s->v->bad)
        return;
    if (!cx_size_ok(s->m, s->size, s->cut))
        bad(s, "size %" PRIu64 " is neither the old nor the new one", s->size);
    for (uint64_t i = 0; i < s->size / CX_SECTOR && !s->v->bad; i++) {
        uint32_t version = cx_version_of(s->m, s->before + i * CX_SECTOR, i);
        if (!cx_sector_ok(s->m, i, version, s->size, s->cut))
            bad(s, "sector %" PRIu64 " holds version %x, which it may not", i, version);
    }
    if (cx_snapshots_digest(&s->w->image) != s->snapshots)
        bad(s, "a snapshot has changed");
    bool changed = s->size != s->m->initial_bytes;
    for (uint64_t i = 0; i < s->size / CX_SECTOR && !changed; i++)
        changed = memcmp(s->before + i * CX_SECTOR, s->m->initial + i * CX_SECTOR, CX_SECTOR) != 0;
    if (changed && cx_bitmaps_trusted(&s->w->image))
        bad(s, "the disk has changed and a persistent bitmap does not say so (P4)");
}

/* Grows by some clusters: whatever an interrupted shrink left behind the end must not come back (Q19). */
static void probe_grow(struct co *co, struct ver *s)
{
    struct byre_err err = { .text = "" };
    uint64_t old = graph_length(s->w->node), to = min_u64(old + 40 * s->k->g.cluster, CX_SECTORS_MAX * CX_SECTOR);
    if (!s->k->g.resize || s->v->bad || to <= old)
        return;
    if (graph_resize(co, s->w->node, to, FMT_PREALLOC_OFF, &err) < 0)
        bad(s, "probe grow: %s", err.text);
    memset(s->before + old, 0, to - old);
    s->size = to;
}

static void probe(struct co *co, struct ver *s)
{
    struct byre_err err = { .text = "" };
    if (s->v->bad)
        return;
    if (cx_open(co, s->w, false, false, &err) < 0) {
        bad(s, "cannot be opened for writing: %s", err.text);
        return;
    }
    struct prng p;
    prng_init(&p, s->cut);
    uint8_t buf[PROBE_SECTORS * CX_SECTOR];
    uint64_t sectors = s->size / CX_SECTOR, n = min_u64(PROBE_SECTORS, sectors);
    for (uint32_t i = 0; i < PROBES; i++) {
        uint64_t at = prng_below(&p, sectors - n + 1);
        for (uint64_t j = 0; j < n; j++)
            cx_stamp(buf + j * CX_SECTOR, at + j, PROBE_VERSION + i);
        struct iovec slot;
        int r = graph_write(co, s->w->node, iov_one(&slot, buf, n * CX_SECTOR), at * CX_SECTOR, 0);
        if (r < 0)
            bad(s, "probe write: %d", r);
        memcpy(s->before + at * CX_SECTOR, buf, n * CX_SECTOR);
    }
    probe_grow(co, s);
    int r = graph_flush(co, s->w->node);
    int c = cx_close(co, s->w);
    if (r < 0 || c < 0)
        bad(s, "probe flush %d, close %d", r, c);
}

static void same(struct co *co, struct ver *s, const char *when)
{
    uint64_t size = s->size;
    read_disk(co, s, s->after, when);
    if (s->v->bad)
        return;
    if (s->size != size)
        bad(s, "%s: size %" PRIu64 " was %" PRIu64, when, s->size, size);
    for (uint64_t i = 0; i < size / CX_SECTOR && !s->v->bad; i++)
        if (memcmp(s->before + i * CX_SECTOR, s->after + i * CX_SECTOR, CX_SECTOR))
            bad(s, "%s: sector %" PRIu64 " has changed", when, i);
    if (cx_snapshots_digest(&s->w->image) != s->snapshots)
        bad(s, "%s: a snapshot has changed", when);
}

static void first_half(struct co *co, void *arg)
{
    struct ver *s = arg;
    check(co, s, 0, "after the crash");
    s->v->leak_bytes = s->last.leaks * s->k->g.cluster;
    read_disk(co, s, s->before, "after the crash");
    judge(s);
}

static void probe_half(struct co *co, void *arg)
{
    struct ver *s = arg;
    probe(co, s);
}

static void second_half(struct co *co, void *arg)
{
    struct ver *s = arg;
    check(co, s, 0, "after the probes");
    same(co, s, "after the probes");
    check(co, s, FMT_FIX_LEAKS | FMT_FIX_ERRORS, "repair");
    check(co, s, 0, "after repair");
    if (!s->v->bad && s->last.leaks)
        bad(s, "after repair: %" PRIu64 " leaks are left", s->last.leaks);
    same(co, s, "after repair");
    check(co, s, FMT_FIX_LEAKS | FMT_FIX_ERRORS, "second repair");
    if (!s->v->bad && (s->last.leaks_fixed || s->last.corruptions_fixed))
        bad(s, "the second repair found something to do");
    same(co, s, "after the second repair");
}

/* ---- a second crash, inside the recovery ---- */

struct nest { struct ver *s; const uint8_t *old; uint64_t old_size; bool repairing; };

static void nested_check(struct co *co, void *arg)
{
    struct nest *n = arg;
    struct ver *s = n->s;
    const char *when = n->repairing ? "crash in repair" : "crash in recovery";
    check(co, s, 0, when);
    read_disk(co, s, s->after, when);
    static const uint8_t zeros[CX_SECTOR];
    for (uint64_t i = 0; i < s->size / CX_SECTOR && !s->v->bad; i++) {
        const uint8_t *was = i < n->old_size / CX_SECTOR ? n->old + i * CX_SECTOR : zeros;     /* the probes may have grown it */
        const uint8_t *p = s->after + i * CX_SECTOR;
        uint32_t version = cx_version_of(s->m, p, i);
        bool probe_value = !n->repairing && version >= PROBE_VERSION && version < PROBE_VERSION + PROBES;
        if (memcmp(p, was, CX_SECTOR) && !probe_value)
            bad(s, "%s: sector %" PRIu64 " holds version %x", when, i, version);
    }
    if (cx_snapshots_digest(&s->w->image) != s->snapshots)
        bad(s, "%s: a snapshot has changed", when);
}

static void repair_only(struct co *co, void *arg)
{
    check(co, arg, FMT_FIX_LEAKS | FMT_FIX_ERRORS, "repair");
}

/* Runs `part` recorded from the bytes in `from`, cuts it at a few moments, and checks each. */
static void nested_cuts(struct ver *s, const struct cx_bytes *from, cx_body *part, bool repairing)
{
    struct cx_world *w = s->w;
    struct cx_op *outer = w->log;
    size_t outer_count = w->log_count, outer_cap = w->log_cap;
    uint64_t now = w->now, old_size = s->size;
    struct prng sched = w->sched, p;
    uint8_t *old = malloc(CX_SECTORS_MAX * CX_SECTOR), *keep = malloc(CX_SECTORS_MAX * CX_SECTOR);
    memcpy(keep, s->before, CX_SECTORS_MAX * CX_SECTOR);
    memcpy(old, s->before, CX_SECTORS_MAX * CX_SECTOR);
    w->log = NULL;
    w->log_count = w->log_cap = 0;
    cx_bytes_copy(&w->image, from);
    w->recording = w->jitter = true;
    if (!cx_run(w, part, s))
        bad(s, "deadlock in recovery");
    w->recording = w->jitter = false;
    prng_init(&p, s->cut + 17);
    for (unsigned i = 0; i < 6 && !s->v->bad && w->log_count; i++) {
        uint64_t cut = w->log[prng_below(&p, w->log_count)].issued + 1;
        cx_state_random(w, from, cut, &p);
        struct nest n = { s, old, old_size, repairing };
        if (!cx_run(w, nested_check, &n))
            bad(s, "deadlock after a crash in recovery");
    }
    memcpy(s->before, keep, CX_SECTORS_MAX * CX_SECTOR);
    cx_log_clear(w);
    free(w->log);
    free(old);
    free(keep);
    w->log = outer;
    w->log_count = outer_count;
    w->log_cap = outer_cap;
    w->now = now;
    w->sched = sched;
}

void cx_verify(struct cx_world *w, const struct cx_model *m, const struct cx_work *k, uint64_t cut, uint64_t snapshots, bool nested, struct cx_verdict *v)
{
    static uint8_t before[CX_SECTORS_MAX * CX_SECTOR], after[CX_SECTORS_MAX * CX_SECTOR];
    struct ver s = { .w = w, .m = m, .k = k, .cut = cut, .snapshots = snapshots, .nested = nested, .v = v, .before = before, .after = after };
    struct cx_bytes from = { 0 };
    *v = (struct cx_verdict){ 0 };
    if (nested) {
        from.data = calloc(1, CX_FILE_MAX);
        cx_bytes_copy(&from, &w->image);
    }
    if (!cx_run(w, first_half, &s))
        bad(&s, "deadlock while reading");
    if (nested && !v->bad) {
        uint64_t size = s.size;
        nested_cuts(&s, &from, probe_half, false);
        s.size = size;
        if (!v->bad)
            nested_cuts(&s, &from, repair_only, true);
        s.size = size;
        cx_bytes_copy(&w->image, &from);
    }
    if (!v->bad && !cx_run(w, probe_half, &s))
        bad(&s, "deadlock while writing");
    if (!v->bad && !cx_run(w, second_half, &s))
        bad(&s, "deadlock in repair");
    free(from.data);
}
