/* SPDX-License-Identifier: MIT
 *
 * q2_amend.c: options of an image that exists.
 *
 * Purpose     Version, width of the counts, lazy refcounts, name of the data file, its raw bit, size (FEATURES 1.138..1.141); the name of the
 *             backing file, for rebase (2.019).
 * Owns        Nothing beyond the call; the image is drained.
 * Invariants  A1  What can be known before is refused before anything is changed.
 *             A2  Every step leads from a sound image to a sound image, and is whole or not there at a crash. Version up comes first,
 *                 version down last, because other options need version 3.
 *             A3  Steps that change the structure begin at rest (q2_rest) and end with everything read again (q2_reload).
 * Order       Width: new counts complete | one sector: refcount table and width (Q20). Version: q2_rewrite.c. Fields: one sector.
 * Concurrency Home loop, drained. Suspends.
 * Failure     Steps done so far stay. If the image cannot be read again, every request fails until it is opened anew.
 * Tests       tests/cli/amend_test.py, crash explorer (amend), tests/faults
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_amend_priv.h"
#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_crypt.h"

#define RELOADS 3u                       /* attempts to read an image again that has been changed */

struct amend {
    struct q2_image *q;
    const struct fmt_amend_opts *a;
    struct byre_err *err;
    unsigned version, bits;             /* wanted */
    bool touched;                       /* this step may have changed the file: what is in memory is read again */
};

static bool given(const struct amend *m, const char *name) { return m->a->given(m->a->arg, name); }

/* ---- is it acceptable? (A1) ---- */

static int check_fixed(const struct amend *m)
{
    static const char *const fixed[] = { "backing_file", "backing_fmt" };
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        if (given(m, fixed[i]) && !m->a->rebase)
            return byre_fail(m->err, NOT_SUPPORTED, "%s: %s: the backing file is changed by rebase, not by amend", m->q->name, fixed[i]);
    return 0;
}

static int check_data_file(const struct amend *m)
{
    const struct q2_image *q = m->q;
    const struct fmt_create_opts *o = m->a->o;
    size_t len = o->data_file ? strlen(o->data_file) : 0;
    if (given(m, "data_file") && !q->g.data_file)
        return byre_fail(m->err, BAD_OPTION, "%s: data_file: can be set only where there is an external data file", q->name);
    if (len > Q2_NAME_MAX || (len && !q2_name_ok((const uint8_t *)o->data_file, len)))
        return byre_fail(m->err, BAD_OPTION, "%s: data_file: the name cannot be stored (up to %u bytes, no control characters)", q->name, Q2_NAME_MAX);
    if (given(m, "data_file_raw") && o->data_file_raw && !q->im.data_raw)
        return byre_fail(m->err, BAD_OPTION, "%s: data_file_raw: cannot be set for an image that exists", q->name);
    return 0;
}

/* For rebase (2.019). */
static int check_backing(const struct amend *m)
{
    const struct q2_image *q = m->q;
    const char *file = m->a->o->backing_file, *format = m->a->o->backing_fmt;
    uint64_t unknown = q->h.compat & ~Q2_COMPAT_KNOWN;
    if (!m->a->rebase)
        return 0;
    if (unknown)
        return byre_fail(m->err, NOT_SUPPORTED, "%s: has compatible features %#" PRIx64 " that are not known here, so its backing file is not changed", q->name, unknown);
    if (file && q->im.data_raw)
        return byre_fail(m->err, NOT_SUPPORTED, "%s: its external data file is a raw image of its own, so it cannot have a backing file", q->name);
    if ((file && !q2_name_ok((const uint8_t *)file, strlen(file))) || (format && !q2_name_ok((const uint8_t *)format, strlen(format))))
        return byre_fail(m->err, BAD_OPTION, "%s: a name with control characters cannot be stored", q->name);
    if (file && strlen(file) > Q2_NAME_MAX)
        return byre_fail(m->err, NO_SPACE, "%s: the name of the new backing file has %zu bytes; a header has room for %u", q->name, strlen(file), Q2_NAME_MAX);
    return 0;
}

static int check_version(struct co *co, const struct amend *m)
{
    const struct fmt_create_opts *o = m->a->o;
    const char *name = m->q->name;
    if (!is_pow2(m->bits) || m->bits > 64)
        return byre_fail(m->err, BAD_OPTION, "%s: refcount_bits: %u is not a power of two from 1 to 64", name, m->bits);
    if (m->version != 2 && m->version != 3)
        return byre_fail(m->err, BAD_OPTION, "%s: compat: version %u is not known (2 and 3 are)", name, m->version);
    if (m->version == 3)
        return 0;
    if (m->bits != 16)
        return byre_fail(m->err, BAD_OPTION, "%s: refcount_bits: compat=0.10 has 16 bits only, not %u", name, m->bits);
    if (given(m, "lazy_refcounts") && o->lazy_refcounts)
        return byre_fail(m->err, BAD_OPTION, "%s: lazy_refcounts: not possible with compat=0.10", name);
    if (m->q->g.version == 2)
        return 0;
    return q2_downgrade_check(co, m->q, given(m, "size") ? o->size : m->q->h.size, m->err);
}

static int check_size(const struct amend *m)
{
    uint64_t size = m->a->o->size;
    if (!given(m, "size"))
        return 0;
    if (!is_aligned(size, 512) || size > INT64_MAX)
        return byre_fail(m->err, BAD_SIZE, "%s: size: %" PRIu64 " is no multiple of 512 below 2^63", m->q->name, size);
    if (q2_l1_entries(&m->q->g, size) * 8 > Q2_L1_BYTES_MAX)
        return byre_fail_code(m->err, BAD_SIZE, -EFBIG, "%s: size: %" PRIu64 " bytes need an L1 table above 32 MiB", m->q->name, size);
    return 0;
}

static int check_all(struct co *co, const struct amend *m)
{
    if (m->q->failed)
        return byre_fail(m->err, Q2_CORRUPT, "%s: the image is corrupt", m->q->name);
    int r = check_fixed(m);
    if (r == 0)
        r = check_backing(m);
    if (r == 0)
        r = check_data_file(m);
    if (r == 0)
        r = check_size(m);
    if (r == 0)
        r = q2_crypt_amend(co, m->q, m->a, true, m->err);
    return r ? r : check_version(co, m);
}

/* ---- steps that change the structure (A3) ---- */

typedef int step_fn(struct co *co, struct amend *m);

static int reload(struct co *co, struct q2_image *q, struct byre_err *err)
{
    int r = -EIO;
    for (unsigned i = 0; i < RELOADS && r < 0; i++)
        r = q2_reload(co, q, err);
    return r;
}

static int step(struct co *co, struct amend *m, step_fn *fn)
{
    struct q2_image *q = m->q;
    int r = q2_rest(co, q);
    m->touched = false;
    if (r < 0)                           /* what is not on the disk yet stays in memory, and goes there later */
        r = byre_fail_code(m->err, IO, r, "%s: cannot be brought to rest: %s", q->name, strerror(-r));
    else
        r = fn(co, m);
    if (!m->touched) {
        q2_alloc_resume(q);
        return r;
    }
    /* When not even the old header could be written back, which one is on the disk is not known: not a byte of the file may change,
     * not its length either, because either may be true. */
    int again = r < 0 ? meta_barrier(co, q->meta, META_B_HEADER) : 0;
    if (again == 0)
        again = reload(co, q, r ? NULL : m->err);
    if (again < 0) {
        q->failed = true;                /* what is on the disk is sound; what is in memory may not be, */
        meta_stop(q->meta, again);       /* and there may be no allocator: nothing is written any more */
    } else if (r == 0) {
        r = q2_lazy_init(q, m->err);
    }
    q2_fixed_update(q);
    if (again == 0 && !q->unclean)       /* one that ran was ended by the rest before it had given anything back (D4) */
        q2_reclaim_start(q);
    return r ? r : again;
}

/* Header of another kind: `change` makes it from a copy of the present one, whose strings stay the image's. */
static int rewrite(struct co *co, struct amend *m, const struct q2_header *h)
{
    m->touched = true;
    meta_struct_begin(co, m->q->meta);
    int r = q2_header_rewrite(co, m->q, h, m->err);
    meta_struct_end(m->q->meta);
    return r;
}

static int set_version(struct co *co, struct amend *m)
{
    struct q2_header h = m->q->h;
    h.version = m->version;
    h.refcount_order = m->version == 2 ? 4 : h.refcount_order;
    if (m->version == 2) {
        h.incompat = h.compat = h.autoclear = 0;
        h.has_frontier = h.has_bitmaps = false;
    }
    return rewrite(co, m, &h);
}

static int set_data_file(struct co *co, struct amend *m)
{
    struct q2_header h = m->q->h;
    h.data_file = m->a->o->data_file && *m->a->o->data_file ? m->a->o->data_file : NULL;
    return rewrite(co, m, &h);
}

/* Whose strings are the caller's. */
static struct q2_header with_backing(const struct amend *m)
{
    struct q2_header h = m->q->h;
    h.backing_name = m->a->o->backing_file;
    h.backing_format = h.backing_name ? m->a->o->backing_fmt : NULL;
    return h;
}

static int set_backing(struct co *co, struct amend *m)
{
    struct q2_header h = with_backing(m);
    return rewrite(co, m, &h);
}

/* Added to those that are kept as they are. */
static int add_ext(struct co *co, struct amend *m, uint32_t type, const char *text)
{
    struct q2_header h = m->q->h;
    struct q2_unknown_ext *all = calloc(h.unknown_count + 1, sizeof *all);
    if (!all)
        return byre_fail(m->err, NOMEM, "%s: no memory for a header", m->q->name);
    for (size_t i = 0; i < h.unknown_count; i++)
        all[i] = h.unknown[i];
    all[h.unknown_count++] = (struct q2_unknown_ext){ type, (uint32_t)strlen(text), (uint8_t *)(uintptr_t)text };
    h.unknown = all;
    int r = rewrite(co, m, &h);
    free(all);
    return r;
}

static int set_partial(struct co *co, struct amend *m)
{
    const char *name = m->a->partial, *token = m->a->partial_token;
    size_t bytes = strlen(name) + Q2_TOKEN_BYTES + 2;
    char *text = malloc(bytes);
    if (!text)
        return byre_fail(m->err, NOMEM, "%s: no memory for a header", m->q->name);
    snprintf(text, bytes, token ? "%s\n%s" : "%s", name, token);
    int r = add_ext(co, m, Q2_EXT_PARTIAL, text);
    free(text);
    return r;
}

static int set_token(struct co *co, struct amend *m) { return add_ext(co, m, Q2_EXT_TOKEN, m->a->token); }

static int try_backing(struct co *co, const struct amend *m)
{
    struct q2_header h = with_backing(m);
    return q2_header_fits(co, m->q, &h, m->err);
}

/* What the image says of itself and of others in a chain, without a change of anything else; once. */
static int marks(struct co *co, struct amend *m)
{
    const struct fmt_image *im = &m->q->im;
    if (m->a->dry_run)
        return try_backing(co, m);
    if (m->a->token)
        return im->token ? 0 : step(co, m, set_token);
    return im->partial ? 0 : step(co, m, set_partial);
}

/* ---- counts ---- */

struct counting { struct q2_checker k; struct fmt_check_opts o; struct q2_geom g; };

static int count(struct co *co, struct amend *m, struct counting **ret)
{
    struct counting *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(m->err, NOMEM, "%s: no memory to count", m->q->name);
    c->o = (struct fmt_check_opts){ .progress = m->a->progress, .arg = m->a->progress_arg };
    q2_checker_init(&c->k, m->q, &c->o, false);
    int r = q2_gather(co, &c->k, m->err);
    if (r == 0 && c->k.res.check_errors)
        r = byre_fail_code(m->err, IO, -EIO, "%s: some of its tables cannot be read", m->q->name);
    if (r == 0 && (c->k.res.corruptions || c->k.incomplete || c->k.unsure || c->k.rebuild))
        r = byre_fail(m->err, Q2_CORRUPT, "%s: the image is damaged; run check -r all before it is amended", m->q->name);
    *ret = c;
    return r;
}

static void uncount(struct counting *c)
{
    if (c)
        q2_checker_fini(&c->k);
    free(c);
}

/* -ERANGE: some cluster has more owners than the width can count. */
static int check_fits(const struct amend *m, const struct counting *c)
{
    for (uint64_t i = q2_counts_next(&c->k.refs, 0); i != Q2_COUNTS_NONE; i = q2_counts_next(&c->k.refs, i + 1))
        if (q2_counts_get(&c->k.refs, i) > c->g.refcount_max)
            return byre_fail_code(m->err, BAD_OPTION, -ERANGE, "%s: refcount_bits: cluster %" PRIu64 " has %" PRIu64 " owners, %u bits count to %" PRIu64,
                                  m->q->name, i, q2_counts_get(&c->k.refs, i), c->g.refcount_bits, c->g.refcount_max);
    return 0;
}

static int rebuild(struct co *co, struct amend *m, struct counting *c, bool snapshots)
{
    struct byre_err why = { 0 };
    c->k.g = &c->g;
    m->touched = true;
    meta_struct_begin(co, m->q->meta);
    int r = q2_rebuild(co, &c->k, snapshots, &why);
    meta_struct_end(m->q->meta);
    if (r == 0)
        return 0;
    return why.code ? byre_fail_code(m->err, IO, r, "%s", why.text) : byre_fail_code(m->err, IO, r, "%s: new counts cannot be written: %s", m->q->name, strerror(-r));
}

static int set_width(struct co *co, struct amend *m)
{
    struct counting *c = NULL;
    int r = count(co, m, &c);
    if (r == 0) {
        c->g = m->q->g;
        c->g = q2_geom_make(c->g.version, c->g.cluster_bits, (uint32_t)__builtin_ctz(m->bits), c->g.ext_l2);
        c->g.data_file = m->q->g.data_file;
        r = check_fits(m, c);
    }
    if (r == 0)
        r = rebuild(co, m, c, false);
    uncount(c);
    return r;
}

/* Version 3 wants 16 bytes of extra data with each snapshot; version 2 may have them as well (1.138). */
static int widen_snapshots(struct co *co, struct amend *m)
{
    struct counting *c = NULL;
    int r = count(co, m, &c);
    bool need = false;
    for (uint32_t i = 0; r == 0 && i < c->k.snapshots.count; i++)
        need |= !c->k.snapshots.snapshots[i].has_disk_size;
    if (r == 0)
        c->g = m->q->g;
    if (r == 0 && need)
        r = rebuild(co, m, c, true);
    uncount(c);
    return r;
}

/* ---- fields ---- */

static int set_fields(struct co *co, struct amend *m)
{
    struct q2_image *q = m->q;
    const struct fmt_create_opts *o = m->a->o;
    uint64_t compat = q->h.compat, autoclear = q->h.autoclear;
    if (m->version == 2)
        return 0;                        /* there are none, or version 2 takes them away */
    if (given(m, "lazy_refcounts"))
        q->h.compat = o->lazy_refcounts ? compat | Q2_COMPAT_LAZY : compat & ~Q2_COMPAT_LAZY;
    if (given(m, "data_file_raw") && !o->data_file_raw)
        q->h.autoclear = autoclear & ~Q2_AUTOCLEAR_RAW_DATA;
    if (q->h.compat == compat && q->h.autoclear == autoclear)
        return 0;
    if (MUTANT(MUT_AMEND_LAZY_LATE))
        q->h.incompat &= ~Q2_INCOMPAT_DIRTY;
    int r = MUTANT(MUT_AMEND_RAW_LATE) ? 0 : q2_header_sync(co, q, MUTANT(MUT_AMEND_LAZY_LATE) ? 72 : 80, 96, META_B_HEADER);
    if (r < 0) {
        q->h.compat = compat;
        q->h.autoclear = autoclear;
        return byre_fail_code(m->err, IO, r, "%s: the header cannot be written: %s", q->name, strerror(-r));
    }
    q->im.data_raw &= (q->h.autoclear & Q2_AUTOCLEAR_RAW_DATA) != 0;
    return 0;
}

static int up(struct co *co, struct amend *m)
{
    int r = 0;
    if (m->version == 3 && m->q->g.version == 2) {
        r = m->q->h.nb_snapshots ? step(co, m, widen_snapshots) : 0;
        r = r ? r : step(co, m, set_version);
    }
    if (r == 0 && m->bits != m->q->g.refcount_bits)
        r = step(co, m, set_width);
    return r;
}

static int down(struct co *co, struct amend *m)
{
    if (m->version == 3 || m->q->g.version == 2)
        return 0;
    int r = q2_downgrade_zeros(co, m->q, m->err);
    return r ? r : step(co, m, set_version);
}

static int fields(struct co *co, struct amend *m)
{
    struct q2_image *q = m->q;
    if (given(m, "lazy_refcounts") && !m->a->o->lazy_refcounts) {
        int r = MUTANT(MUT_AMEND_LAZY_LATE) ? 0 : q2_lazy_leave(co, q);      /* first no count is late any more */
        if (r < 0)
            return byre_fail_code(m->err, IO, r, "%s: counts cannot be written: %s", q->name, strerror(-r));
    }
    int r = set_fields(co, m);
    if (r == 0)
        r = q2_lazy_init(q, m->err);
    if (r == 0 && q->lazy && !q->lazy_on && MUTANT(MUT_AMEND_LAZY_AT_ONCE)) {
        q->lazy_on = true;
        meta_set_lazy_counts(q->meta, true);
    }
    if (r == 0 && given(m, "data_file"))
        r = step(co, m, set_data_file);
    if (r == 0 && m->a->rebase)
        r = step(co, m, set_backing);
    return r;
}

int q2_amend(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *a, struct byre_err *err)
{
    struct q2_image *q = q2_of(im);
    struct amend m = { .q = q, .a = a, .err = err, .version = q->g.version, .bits = q->g.refcount_bits };
    ASSERT_LOOP(im->home);
    if (given(&m, "compat"))
        m.version = a->o->version;
    if (given(&m, "refcount_bits"))
        m.bits = a->o->refcount_bits;
    int r = q2_scrub_excludes(q, "amended", err);
    if (r < 0)
        return r;
    q->changing = true;                          /* no scrub begins */
    r = check_all(co, &m);
    if (a->dry_run || a->partial || a->token) {
        r = r ? r : marks(co, &m);
        q->changing = false;
        return r;
    }
    if (r == 0)
        r = q2_crypt_amend(co, q, a, false, err);    /* what may be refused for a passphrase comes first */
    if (r == 0)
        r = up(co, &m);
    if (r == 0)
        r = fields(co, &m);
    if (r == 0 && given(&m, "size") && a->o->size != q->h.size)
        r = a->resize(co, a->resize_arg, a->o->size, err);
    r = r ? r : down(co, &m);
    q->changing = false;
    return r;
}
