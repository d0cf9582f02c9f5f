/* SPDX-License-Identifier: MIT
 *
 * fx_steps.c: performs the steps of a scenario, while faults strike, and judges every answer.
 *
 * Purpose      The guest and the operator of one image.
 * Owns         Buffers for one disk.
 * Invariants   Allocations are refused only inside engine calls (fx_alloc.armed); the sources here make none of those.
 * Order        Steps one after another; those marked together at the same time.
 * Concurrency  Coroutines of the world's one loop.
 * Failure      fx_bad() for what may not happen; errors that may happen only change what the model allows.
 * Tests        test_faults.py
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fx.h"

void fx_bad(struct fx_run *r, const char *fmt, ...)
{
    va_list ap;
    if (r->bad)
        return;
    r->bad = true;
    va_start(ap, fmt);
    vsnprintf(r->why, sizeof r->why, fmt, ap);
    va_end(ap);
}

uint64_t fx_hits(const struct fx_run *r) { return r->fault.kind == FX_K_ALLOC ? fx_alloc.hits : r->w->faults.hits; }

/* Is this errno the fault's? What a failed flush leaves behind is EIO; so is metadata that ends too early, but a header
 * that is not there makes it no image. */
static bool errno_fits(const struct fx_run *r, enum fx_do what, int e)
{
    if (what == FX_COMPACT && e == -EIO && r->fault.kind == CX_F_READ)
        return true;                             /* its scrub counts the places that cannot be read */
    if (r->c->g.table && e == -EIO && fx_hits(r) && r->fault.kind == CX_F_READ && (what == FX_OPEN_RW || what == FX_REPAIR || what == FX_SCRUB))
        return true;                             /* the same of the check of QED */
    const struct fx_fault *f = &r->fault;
    if (!f->nth || !fx_hits(r) || f->how == FX_SHORT)
        return false;
    if (e == -EIO && (r->c->g.device || r->c->g.table) && r->c->scene->damage == FX_UNCLEAN)       /* it waited for a scrub, and that has failed */
        return true;
    if (r->amend_failed && e == -EIO && (f->kind == CX_F_READ || f->forever))       /* its check says EIO; changed, and cannot be read again */
        return true;
    if (f->kind == FX_K_ALLOC)
        return e == -ENOMEM;
    if (e == -EIO && r->c->g.luks && f->kind == CX_F_READ)     /* of a key slot: "no access" is kept for passphrases */
        return true;
    if (e == -EINVAL && f->kind == CX_F_READ && f->how == FX_NOTHING)
        return what == FX_OPEN_RO || what == FX_OPEN_RW || what == FX_CHECK || what == FX_REPAIR;
    return (f->how != FX_NOTHING && e == -f->error) || (e == -EIO && (f->kind == CX_F_FLUSH || f->how == FX_NOTHING));
}

static void answered(struct fx_run *r, enum fx_do what, int e, const struct byre_err *err)
{
    if (e == 0)
        return;
    r->steps_failed++;
    if (e > 0)
        fx_bad(r, "%s answered %d", fx_do_names[what], e);
    else if (!errno_fits(r, what, e))
        fx_bad(r, "%s failed with errno %d%s%s", fx_do_names[what], -e, err ? ": " : "", err ? err->text : "");
    else if (err && (err->code != e || !err->reason || !err->text[0]))
        fx_bad(r, "%s failed with errno %d, but its error says %d '%s'", fx_do_names[what], -e, err->code, err->text);
}

/* ---- requests ---- */

static int write_version(struct co *co, struct fx_run *r, uint64_t off, uint64_t len, unsigned version, unsigned flags)
{
    uint8_t *buf = malloc(len);
    if (!buf)
        abort();
    for (uint64_t i = 0; i < len; i += CX_SECTOR)
        cx_stamp(buf + i, (off + i) / CX_SECTOR, version);
    struct iovec slot;
    fx_issue(&r->m, off, len, version);
    int e = graph_write(co, r->w->node, iov_one(&slot, buf, len), off, flags);
    if (e == 0)
        fx_done(&r->m, off, len, version);
    free(buf);
    return e;
}

int fx_write_version(struct co *co, struct fx_run *r, uint64_t off, uint64_t len, unsigned version)
{
    return write_version(co, r, off, len, version, 0);
}

/* Is sector i of `set` by what a clone has brought from the sector that lies so far in front? */
static bool moved_fits(const struct fx_run *r, const uint8_t *p, uint64_t i, uint64_t set)
{
    uint64_t by = FX_CLONE_BY * r->c->g.cluster / CX_SECTOR;
    uint32_t v = i >= by && set >> FX_MOVED ? cx_version_of(r->c->values, p, i - by) : CX_FOREIGN;
    return v < FX_MOVED_MAX && set >> (FX_MOVED + v) & 1;
}

void fx_read_judged(struct co *co, struct fx_run *r, const uint64_t *set, const char *when)
{
    uint64_t len = graph_length(r->w->node);
    uint8_t *out = malloc(CX_SECTORS_MAX * CX_SECTOR);
    if (!out)
        abort();
    memset(out, 0xa5, len);
    int e = cx_read_all(co, r->w, out);
    answered(r, FX_READ, e, NULL);
    for (uint64_t i = 0; e == 0 && i < len / CX_SECTOR && !r->bad; i++) {
        uint32_t v = cx_version_of(r->c->values, out + i * CX_SECTOR, i);
        if ((v >= 64 || !(set[i] >> v & 1)) && !moved_fits(r, out + i * CX_SECTOR, i, set[i]))
            fx_bad(r, "%s: sector %" PRIu64 " holds version %x; allowed %" PRIx64, when, i, v, set[i]);
    }
    free(out);
}

static bool place(const struct fx_run *r, const struct fx_step *s, uint64_t *ret_off, uint64_t *ret_len)
{
    uint64_t cs = r->c->g.cluster, size = graph_length(r->w->node);
    *ret_off = (s->at * cs + s->at_sectors * CX_SECTOR) % size;
    *ret_len = min_u64(s->len * cs + s->len_sectors * CX_SECTOR, size - *ret_off);
    return *ret_len > 0;
}

/* A discard may leave parts of clusters alone: only its whole clusters are sure to be zero afterwards. */
static bool sure(const struct fx_run *r, const struct fx_step *s, uint64_t off, uint64_t len)
{
    const struct cx_geometry *g = &r->c->g;
    if (g->table && r->fault.kind == CX_F_ZERO && r->fault.error == ENOTSUP)
        return s->what != FX_DISCARD;            /* it cannot punch: then nothing happens */
    return s->what != FX_DISCARD || (off % g->cluster == 0 && len % g->cluster == 0 && g->version == 3 && !g->image[0]);
}

static int clone_range(struct co *co, struct fx_run *r, uint64_t off, uint64_t len)
{
    uint64_t to = off + FX_CLONE_BY * r->c->g.cluster;
    if (to + len > graph_length(r->w->node))
        return 0;
    fx_moved(&r->m, off, to, len, false);
    int e = graph_clone(co, r->w->node, off, to, len);
    if (e == 0)
        fx_moved(&r->m, off, to, len, true);
    else
        r->clone_cut = true;
    return e;
}

static int request(struct co *co, struct fx_run *r, const struct fx_step *s, unsigned version)
{
    uint64_t off, len;
    if (!place(r, s, &off, &len))
        return 0;
    if (s->what == FX_WRITE || s->what == FX_PACK)
        return write_version(co, r, off, len, version, s->what == FX_PACK ? GRAPH_COMPRESS : 0);
    if (s->what == FX_CLONE)
        return clone_range(co, r, off, len);
    fx_issue(&r->m, off, len, CX_ZEROS);
    int e = s->what == FX_DISCARD ? graph_discard(co, r->w->node, off, len) : graph_zero(co, r->w->node, off, len, s->what == FX_UNMAP ? GRAPH_UNMAP : 0);
    if (e == 0 && sure(r, s, off, len))
        fx_done(&r->m, off, len, CX_ZEROS);
    return e;
}

static int flush(struct co *co, struct fx_run *r)
{
    struct fx_flush *f = malloc(sizeof *f);
    if (!f)
        abort();
    bool latched = r->fault.kind == CX_F_FLUSH && fx_hits(r) > r->session_hits;
    fx_flush_begin(&r->m, f);
    int e = graph_flush(co, r->w->node);
    fx_flush_end(&r->m, f, e == 0);
    free(f);
    if (latched && e == 0)
        fx_bad(r, "a flush succeeded after a failed one (RG27)");
    return e;
}

static int resize(struct co *co, struct fx_run *r, const struct fx_step *s, struct byre_err *err)
{
    uint64_t old = graph_length(r->w->node), part = round_down(r->c->size / 16 * s->len, CX_SECTOR);
    uint64_t to = s->what == FX_GROW ? old + part + CX_SECTOR : part + CX_SECTOR;
    unsigned id = fx_size_issue(&r->m, to);
    int e = graph_resize(co, r->w->node, to, FMT_PREALLOC_OFF, err);
    if (e == 0)
        fx_size_done(&r->m, id);
    else if (graph_length(r->w->node) != old && graph_length(r->w->node) != to)
        fx_bad(r, "a failed resize left the size %" PRIu64, graph_length(r->w->node));
    return e;
}

static bool amend_given(void *arg, const char *option)
{
    const struct fx_step *s = arg;
    return !strcmp(option, s->at ? "refcount_bits" : "compat");
}

static int amend(struct co *co, struct fx_run *r, const struct fx_step *s, struct byre_err *err)
{
    struct fx_step what = *s;
    struct fmt_create_opts fo = { .version = s->len, .refcount_bits = s->len };
    struct fmt_amend_opts a = { .o = &fo, .given = amend_given, .arg = &what };
    int e = graph_amend(co, r->w->node, &a, err);
    bool refused = e == -EINVAL || e == -ENOTSUP || e == -ERANGE;
    r->amend_failed |= e && !refused;
    r->snap_cut |= e && !refused && r->m.snap_count;          /* Q25 */
    return refused ? 0 : e;        /* what the image cannot become */
}

/* The disk is as it was, whatever comes of it. */
static int write_state(struct co *co, struct fx_run *r, const struct fx_step *s)
{
    uint64_t cs = r->c->g.cluster, len = s->len * cs + s->len_sectors * CX_SECTOR;
    uint8_t *buf = malloc(len);
    if (!buf)
        abort();
    memset(buf, 0xe7, len);
    struct iovec slot;
    int e = graph_write_state(co, r->w->node, iov_one(&slot, buf, len), s->at * cs + s->at_sectors * CX_SECTOR);
    free(buf);
    if (e)
        return e;
    uint8_t *back = malloc(len);
    if (!back)
        abort();
    struct cx_faults keep = r->w->faults;        /* what was answered well is there: looked at without faults, and uncounted */
    bool armed = fx_alloc.armed;
    r->w->faults.nth = 0;
    fx_alloc.armed = false;
    e = graph_read_state(co, r->w->node, iov_one(&slot, back, len), s->at * cs + s->at_sectors * CX_SECTOR);
    for (uint64_t i = 0; e == 0 && i < len; i++)
        if (back[i] != 0xe7) {
            fx_bad(r, "the VM state does not hold what was written");
            break;
        }
    if (e)
        fx_bad(r, "the VM state cannot be read back: %d", e);
    r->w->faults = keep;
    fx_alloc.armed = armed;
    free(back);
    return 0;
}

/* ---- key slots ---- */

/* 0: a slot for "b"; 1: that of "a" is erased; 2: the first one, which may be the only one, gets "b" instead; 3, 4: the one
 * whose entry lies in both sectors of the header gets "b", and is erased. way: what may open the image meanwhile; from: 0, or
 * what must open it (an earlier step may have failed). */
#define BOTH (FX_KEY_A | FX_KEY_B)
static const struct { enum fmt_key_state state; const char *given[3]; uint32_t slot; bool force; unsigned from, way, end; } key_changes[] = {
    { FMT_KEY_ACTIVE, { "encrypt.state", "encrypt.new-secret", "encrypt.iter-time" }, 0, false, 0, 1u << BOTH, BOTH },
    { FMT_KEY_INACTIVE, { "encrypt.state", "encrypt.old-secret", "" }, 0, false, BOTH, 1u << FX_KEY_B, FX_KEY_B },
    { FMT_KEY_ACTIVE, { "encrypt.state", "encrypt.new-secret", "encrypt.keyslot" }, 0, true, 0, 1u << BOTH | 1u << FX_KEY_B, FX_KEY_B },
    { FMT_KEY_ACTIVE, { "encrypt.state", "encrypt.new-secret", "encrypt.keyslot" }, 6, false, 0, 1u << BOTH, BOTH },
    { FMT_KEY_INACTIVE, { "encrypt.state", "encrypt.keyslot", "" }, 6, false, BOTH, 1u << FX_KEY_A, FX_KEY_A },
};

static bool key_given(void *arg, const char *option)
{
    const unsigned *change = arg;
    for (unsigned i = 0; i < 3; i++)
        if (!strcmp(option, key_changes[*change].given[i]))
            return true;
    return false;
}

static int change_keys(struct co *co, struct fx_run *r, unsigned change, struct byre_err *err)
{
    static char a[] = "a", b[] = "b";
    struct fmt_create_opts fo = { .secrets = fx_secrets(), .encrypt = { .state = key_changes[change].state, .keyslot = key_changes[change].slot, .iter_time_ms = 10 } };
    if (change == 1)
        fo.encrypt.old_secret = a;
    else if (key_changes[change].state == FMT_KEY_ACTIVE)
        fo.encrypt.new_secret = b;
    struct fmt_amend_opts o = { .o = &fo, .given = key_given, .arg = &change, .force = key_changes[change].force };
    if (key_changes[change].from && r->m.keys_now != 1u << key_changes[change].from)
        return 0;
    fx_keys_issue(&r->m, key_changes[change].way);
    int e = graph_amend(co, r->w->node, &o, err);
    if (e == 0)
        fx_keys_done(&r->m, key_changes[change].end);
    return e;
}

/* ---- snapshots ---- */

static const char *const snap_names[] = { "k", "before" };

static struct fx_snap *snap_named(struct fx_run *r, const char *name)
{
    for (unsigned i = 0; i < r->m.snap_count; i++)
        if (strcmp(r->m.snap[i].s.name, name) == 0)
            return &r->m.snap[i];
    return NULL;
}

/* The one that is to be made. Everything that was written is in the file. */
static struct fx_snap *snap_new(struct fx_run *r, const char *name)
{
    struct fx_snap *n = &r->m.snap[r->m.snap_count++];
    *n = (struct fx_snap){ .s.digest = cx_disk_digest(&r->w->image), .now = FX_ABSENT, .crash = FX_ABSENT, .ever = FX_ABSENT };
    snprintf(n->s.name, sizeof n->s.name, "%s", name);
    memcpy(n->holds, r->m.now, sizeof n->holds);
    n->sizes = r->m.now_sizes;
    return n;
}

static void snap_issue(struct fx_model *m, struct fx_snap *n, enum fx_do what)
{
    unsigned bit = what == FX_KEEP ? FX_THERE : what == FX_DROP ? FX_ABSENT : 0;
    n->now |= bit;
    n->crash |= bit;
    n->ever |= bit;
    if (what == FX_APPLY) {
        m->now_sizes |= n->sizes;
        m->crash_sizes |= n->sizes;
    }
    for (unsigned i = 0; what == FX_APPLY && i < FX_SECTORS; i++) {
        m->now[i] |= n->holds[i];
        m->crash[i] |= n->holds[i];
        m->ever[i] |= n->holds[i];
    }
}

/* What an operation that succeeded has done is durable, with all that came before. */
static void snap_done(struct fx_model *m, struct fx_snap *n, enum fx_do what)
{
    if (what == FX_APPLY) {
        memcpy(m->now, n->holds, sizeof m->now);
        m->now_sizes = m->crash_sizes = n->sizes;
    } else
        n->now = n->crash = what == FX_KEEP ? FX_THERE : FX_ABSENT;
    memcpy(m->crash, m->now, sizeof m->crash);
}

static int snapshot(struct co *co, struct fx_run *r, const struct fx_step *s, struct byre_err *err)
{
    const char *name = snap_names[s->at];
    struct fx_snap *n = snap_named(r, name);
    if (s->what == FX_KEEP ? n || r->steps_failed : !n || n->now != FX_THERE)
        return 0;                        /* an earlier step has failed */
    if (!n)
        n = snap_new(r, name);
    struct fmt_snapshot_req rq = { .op = s->what == FX_KEEP ? FMT_SNAPSHOT_CREATE : s->what == FX_APPLY ? FMT_SNAPSHOT_APPLY : FMT_SNAPSHOT_DELETE,
                                   .name = name, .unique = true, .pick = { .name = name } };
    snap_issue(&r->m, n, s->what);
    int e = graph_snapshot(co, r->w->node, &rq, NULL, err);
    if (e == 0)
        snap_done(&r->m, n, s->what);
    else if (r->fault.forever || r->fault.kind == CX_F_FLUSH || s->what == FX_DROP)      /* a snapshot that is gone does not come back */
        r->snap_cut = true;
    r->applied |= e == 0 && s->what == FX_APPLY;
    return e;
}

/* ---- operations on the image as a whole ---- */

int fx_create(struct co *co, struct cx_world *w, const struct cx_geometry *g, struct byre_err *err)
{
    struct stor *s;
    char base[] = "base", raw[] = "raw";
    struct fmt_create_opts o = { .size = g->size, .cluster_size = g->cluster, .version = g->version, .refcount_bits = g->refcount_bits,
        .lazy_refcounts = g->lazy, .table_size = g->table };
    if (g->backing) {
        o.backing_file = base;
        o.backing_fmt = raw;
    }
    if (g->luks)
        fx_luks_options(&o);
    char data[] = "data";
    struct fmt_host host = { .open_data = cx_open_data, .arg = w };
    if (g->data_file) {
        o.data_file = data;
        o.host = &host;
    }
    int e = cx_store_open(w, "img", false, &s);
    if (e < 0)
        return byre_fail(err, NOMEM, "img");
    e = cx_format(g)->create(co, s, &o, err);
    stor_close(co, s);
    return e;
}

int fx_close(struct co *co, struct fx_run *r)
{
    struct fx_flush *f = malloc(sizeof *f);
    if (!f)
        abort();
    bool latched = r->fault.kind == CX_F_FLUSH && fx_hits(r) > r->session_hits && !graph_read_only(r->w->node);
    fx_flush_begin(&r->m, f);
    int e = cx_close(co, r->w);
    fx_flush_end(&r->m, f, e == 0);
    free(f);
    if (latched && e == 0)
        fx_bad(r, "close succeeded after a failed flush (RG27)");
    r->closed_well = e == 0;
    if (e)                               /* what was not flushed is lost, or not */
        memcpy(r->m.now, r->m.crash, sizeof r->m.now);
    if (e)
        r->m.now_sizes = r->m.crash_sizes;
    return e;
}

static int open_image(struct co *co, struct fx_run *r, bool read_only, bool check_mode, struct byre_err *err)
{
    r->opening_hits = fx_hits(r);
    r->mended &= read_only;
    int e = cx_open(co, r->w, read_only, check_mode, err);
    r->session_hits = fx_hits(r);
    return e;
}

static int check(struct co *co, struct fx_run *r, bool repair, struct byre_err *err)
{
    struct fmt_check_opts o = { .fix = repair ? FMT_FIX_LEAKS | FMT_FIX_ERRORS : 0 };
    struct fmt_check_result res = { 0 };
    enum fx_damage damage = r->c->scene->damage;
    int e = open_image(co, r, !repair, true, err);
    if (e < 0)
        return e;
    uint64_t before = fx_hits(r);
    struct fmt_image *im = graph_image(r->w->node);
    e = im->ops->check(co, im, &o, &res, err);
    bool failed = e < 0 || res.check_errors;
    bool struck = fx_hits(r) > before && r->fault.kind == CX_F_READ && r->fault.how == FX_ERROR;
    if (struck && !failed && !repair && (!r->c->g.table || r->fault.forever))        /* QED: what fails once is looked at again */
        fx_bad(r, "check could not read everything and does not say so");
    if (!failed && damage == FX_SOUND && res.corruptions)
        fx_bad(r, "check sees %" PRIu64 " corruptions", res.corruptions);
    if (!failed && damage == FX_LEAKY && !repair && r->steps_failed == 0 && res.leaks == 0 && r->c->scene->steps[1].what == FX_CHECK)
        fx_bad(r, "check does not see the leak");
    int c = fx_close(co, r);
    if (e == 0 && c < 0 && err)
        (void)byre_fail_code(err, IO, c, "close");          /* the text is ours */
    r->mended = repair && !failed && c == 0;
    return e < 0 ? e : c;
}

static void scrub_finding(void *arg, bool fixed, const char *id, const char *text)
{
    char *first = arg;
    if (!fixed && !first[0])
        snprintf(first, 200, "%s: %s", id, text);
}

static int scrub(struct co *co, struct fx_run *r, struct byre_err *err)
{
    char first[200] = "";
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .finding = scrub_finding, .arg = first };
    struct fmt_check_result res = { 0 };
    struct fmt_image *im = graph_image(r->w->node);
    uint64_t before = fx_hits(r);
    int e = im->ops->scrub(co, im, &o, &res, err);
    if (e == 0 && fx_hits(r) == 0 && (res.corruptions || res.check_errors || atomic_load(&im->unclean)))
        fx_bad(r, "a scrub sees %" PRIu64 " corruptions and %" PRIu64 " errors: %s", res.corruptions, res.check_errors, first);
    if (e == 0 && r->fault.kind == CX_F_READ && r->fault.how == FX_ERROR && fx_hits(r) > before && r->fault.forever && !res.check_errors && atomic_load(&im->unclean))
        fx_bad(r, "a scrub could not read everything and does not say so");
    return e;
}

static int compact(struct co *co, struct fx_run *r, struct byre_err *err)
{
    struct fmt_compact_opts o = { .look_for_zeros = true };
    struct fmt_compact_result res = { 0 };
    struct fmt_image *im = graph_image(r->w->node);
    return im->ops->compact(co, im, &o, &res, err);
}

/* ---- the list ---- */

struct one { struct fx_run *r; const struct fx_step *s; unsigned version; };

static void one_step(struct co *co, struct fx_run *r, const struct fx_step *s, unsigned version)
{
    struct byre_err err = { .text = "" };
    bool open = r->w->node != NULL;
    int e = 0;
    switch (s->what) {
    case FX_CREATE:
        e = fx_create(co, r->w, &r->c->g, &err);
        r->created = r->closed_well = e == 0;
        answered(r, s->what, e, &err);
        break;
    case FX_OPEN_RO:
    case FX_OPEN_RW:
        if (!open)
            cx_believe(r->w);
        r->w->unclean_ok = s->what == FX_OPEN_RW && s->at;
        answered(r, s->what, open ? 0 : open_image(co, r, s->what == FX_OPEN_RO, false, &err), &err);
        r->w->unclean_ok = false;
        break;
    case FX_COMPACT:
        answered(r, s->what, open ? compact(co, r, &err) : 0, &err);
        break;
    case FX_SCRUB:
        answered(r, s->what, open ? scrub(co, r, &err) : 0, &err);
        break;
    case FX_CHECK:
    case FX_REPAIR:
        answered(r, s->what, check(co, r, s->what == FX_REPAIR, &err), &err);
        break;
    case FX_READ:
        if (open)
            fx_read_judged(co, r, r->m.now, "read");
        break;
    case FX_FLUSH:
        answered(r, s->what, open ? flush(co, r) : 0, NULL);
        break;
    case FX_CLOSE:
        answered(r, s->what, open ? fx_close(co, r) : 0, NULL);
        break;
    case FX_KEEP:
    case FX_APPLY:
    case FX_DROP:
        answered(r, s->what, open ? snapshot(co, r, s, &err) : 0, &err);
        break;
    case FX_GROW:
    case FX_SHRINK:
        answered(r, s->what, open ? resize(co, r, s, &err) : 0, &err);
        break;
    case FX_BITMAP:
        answered(r, s->what, open ? fx_bitmap_do(co, r, s->at, &err) : 0, &err);
        break;
    case FX_STATE:
        answered(r, s->what, open ? write_state(co, r, s) : 0, NULL);
        break;
    case FX_KEY:
        answered(r, s->what, open ? change_keys(co, r, s->at, &err) : 0, &err);
        break;
    case FX_AMEND:
        answered(r, s->what, open ? amend(co, r, s, &err) : 0, &err);
        break;
    default:
        answered(r, s->what, open ? request(co, r, s, version) : 0, NULL);
    }
}

static void one_co(struct co *co, void *arg)
{
    struct one *o = arg;
    one_step(co, o->r, o->s, o->version);
    co_group_leave(&o->r->group);
    free(o);
}

static void arm(struct fx_run *r)
{
    const struct fx_fault *f = &r->fault;
    memset(&r->w->faults, 0, sizeof r->w->faults);
    fx_alloc.calls = fx_alloc.hits = fx_alloc.nth = 0;
    if (f->kind == FX_K_ALLOC) {
        fx_alloc.nth = f->nth;
        fx_alloc.forever = f->forever;
    } else {
        r->w->faults = (struct cx_faults){ .kind = (enum cx_fault_kind)f->kind, .nth = f->nth, .forever = f->forever, .error = f->error,
            .short_transfer = f->how == FX_SHORT || f->how == FX_NOTHING, .nothing = f->how == FX_NOTHING, .late = f->how == FX_LATE };
    }
    fx_alloc.armed = true;
}

static void disarm(struct fx_run *r)
{
    fx_alloc.armed = false;
    fx_alloc.nth = 0;
    r->w->faults.nth = 0;
    r->hits = fx_hits(r);
    memcpy(r->calls, r->w->faults.calls, sizeof r->w->faults.calls);
    r->calls[FX_K_ALLOC] = fx_alloc.calls;
}

static void start_step(struct co *co, struct fx_run *r, const struct fx_step *s, unsigned version)
{
    if (!s->together)
        co_group_wait(co, &r->group);
    if (!s->together && !s[1].together) {
        one_step(co, r, s, version);
        return;
    }
    struct one *o = malloc(sizeof *o);
    if (!o)
        abort();
    *o = (struct one){ r, s, version };
    bool armed = fx_alloc.armed;
    fx_alloc.armed = false;              /* a coroutine of ours */
    co_group_enter(&r->group);
    if (rt_spawn(r->w->loop, one_co, o) < 0)
        abort();
    fx_alloc.armed = armed;
}

void fx_steps_run(struct co *co, struct fx_run *r)
{
    for (unsigned i = 0; i < FX_STEPS && r->c->scene->steps[i].what; i++) {
        const struct fx_step *s = &r->c->scene->steps[i];
        if (s->what == FX_FAULTS)
            arm(r);
        else
            start_step(co, r, s, 2 + i);
    }
    co_group_wait(co, &r->group);
    for (unsigned i = 0; i < 64; i++)    /* what works behind is struck too */
        co_yield(co);
    disarm(r);
}
