/* SPDX-License-Identifier: MIT
 *
 * q2_create.c: writes a fresh image.
 *
 * Purpose      Brings the plan (q2_plan.h) to the store with bounded memory.
 * Owns         One buffer of 1 MiB or one cluster, whichever is larger.
 * Invariants   I1 Until the last write the store holds no qcow2 header: a crash leaves a file that is no image.
 *              I2 Every metadata cluster is written, or reads as zeros because the file has just been grown.
 * Order        Q28: the old header is gone, flush; all structures and data (an external data file, flush), flush, header cluster, flush.
 * Concurrency  One coroutine on one loop; suspends in I/O.
 * Failure      The first error ends it; what was written so far stays behind (the caller removes the file).
 * Tests        q2_plan_test.c, tests/interop/test_q2_create.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "fmt/qcow2/q2_crypt.h"
#include "fmt/qcow2/q2_plan.h"

#define CHUNK_BYTES (1u << 20)
#define PAGE_BYTES 4096u
#define MAGIC_BYTES 512u        /* the sector without which there is no image */

struct writer {
    const struct q2_plan *p;
    const struct fmt_create_opts *o;
    struct stor *store, *data;  /* data: NULL without an external data file */
    uint8_t *buf;
    uint64_t buf_clusters;
    bool fresh;                 /* the file was empty: what is not written reads as zeros */
    struct byre_err *err;
};

static int failed(struct writer *w, const char *what, int rc)
{
    if (rc == -ENOSPC)
        return byre_fail(w->err, NO_SPACE, "%s: no space left to %s", w->store->name, what);
    return byre_fail_code(w->err, IO, rc, "%s: cannot %s: %s", w->store->name, what, strerror(-rc));
}

/* Q28: or a crash leaves the old header over the new tables. */
static int forget_old(struct co *co, struct writer *w) { return MUTANT(MUT_CREATE_OVER_HEADER) ? 0 : stor_flush(co, w->store); }

/* Makes room for the image: a file is emptied and grown, a device must be large enough. */
static int set_length(struct co *co, struct writer *w)
{
    uint64_t need = w->p->clusters << w->p->g.cluster_bits, have;
    int rc = stor_length(co, w->store, &have);
    if (!rc && w->store->traits.regular) {
        w->fresh = true;
        if (have)
            rc = stor_truncate(co, w->store, 0);
        if (!rc && have)
            rc = forget_old(co, w);
        if (!rc)
            rc = stor_truncate(co, w->store, need);
        return rc ? failed(w, "set the length of the file", rc) : 0;
    }
    if (rc)
        return failed(w, "find the length of the device", rc);
    if (have < need)
        return byre_fail(w->err, NO_SPACE, "%s: has %" PRIu64 " bytes, the image needs %" PRIu64, w->store->name, have, need);
    rc = stor_zero(co, w->store, 0, MAGIC_BYTES, 0);         /* in one piece, and nothing else of the old image before it */
    if (!rc)
        rc = forget_old(co, w);
    return rc ? failed(w, "clear the old header", rc) : 0;
}

/* Writes n clusters of buf; in a fresh file only the runs of pages that are not zero. */
static int write_clusters(struct co *co, struct writer *w, uint64_t first, uint64_t n)
{
    uint64_t off = first << w->p->g.cluster_bits, len = n << w->p->g.cluster_bits, page = min_u64(w->p->g.cluster_size, PAGE_BYTES);
    if (!w->fresh)
        return stor_write_buf(co, w->store, w->buf, len, off, 0);
    for (uint64_t at = 0; at < len;) {
        uint64_t run = 0;
        while (at + run < len && !mem_is_zero(w->buf + at + run, page))
            run += page;
        int rc = run ? stor_write_buf(co, w->store, w->buf + at, run, off + at, 0) : 0;
        if (rc)
            return rc;
        at += run ? run : page;
    }
    return 0;
}

static int write_tables(struct co *co, struct writer *w)
{
    for (uint64_t c = w->p->rt_first; c < w->p->data_first;) {
        uint64_t n = min_u64(w->buf_clusters, w->p->data_first - c);
        q2_plan_fill(w->p, c, n, w->buf);
        int rc = write_clusters(co, w, c, n);
        if (rc)
            return failed(w, "write the tables", rc);
        c += n;
    }
    return 0;
}

static int write_zeros(struct co *co, struct writer *w, struct stor *s, uint64_t off, uint64_t len)
{
    uint64_t step = w->buf_clusters * w->p->g.cluster_size;
    memset(w->buf, 0, step);
    while (len) {
        uint64_t n = min_u64(step, len);
        int rc = stor_write_buf(co, s, w->buf, n, off, 0);
        if (rc)
            return rc;
        off += n;
        len -= n;
    }
    return 0;
}

/* Guest data in a file of its own: it gets the size of the disk, and space where that was asked for (1.078). */
static int make_data_file(struct co *co, struct writer *w)
{
    struct stor *s = w->data;
    uint64_t size = w->p->h.size, have = 0;
    int rc = s->traits.regular ? stor_truncate(co, s, 0) : stor_length(co, s, &have);
    if (!rc && s->traits.regular)
        rc = stor_truncate(co, s, size);
    if (!rc && !s->traits.regular && have < size)
        return byre_fail(w->err, NO_SPACE, "%s: has %" PRIu64 " bytes, the disk needs %" PRIu64, s->name, have, size);
    if (!rc && !s->traits.regular && w->p->prealloc != FMT_PREALLOC_OFF)
        rc = stor_zero(co, s, 0, size, 0);
    if (!rc && w->p->prealloc == FMT_PREALLOC_FALLOC)
        rc = stor_preallocate(co, s, 0, size);
    if ((rc == -ENOTSUP && w->p->prealloc == FMT_PREALLOC_FALLOC) || (!rc && w->p->prealloc == FMT_PREALLOC_FULL))
        rc = write_zeros(co, w, s, 0, size);
    if (!rc)
        rc = stor_flush(co, s);
    if (rc == -ENOSPC)
        return byre_fail(w->err, NO_SPACE, "%s: no space left for the guest's data", s->name);
    return rc ? byre_fail_code(w->err, IO, rc, "%s: cannot be prepared for the guest's data: %s", s->name, strerror(-rc)) : 0;
}

static int make_data(struct co *co, struct writer *w)
{
    uint64_t off = w->p->data_first << w->p->g.cluster_bits, len = w->p->data_count << w->p->g.cluster_bits;
    int rc = 0;
    if (!len)
        return 0;
    switch (w->p->prealloc) {
    case FMT_PREALLOC_FALLOC:
        rc = stor_preallocate(co, w->store, off, len);
        if (rc == -ENOTSUP)
            rc = write_zeros(co, w, w->store, off, len);
        else if (!rc && !w->fresh)
            rc = stor_zero(co, w->store, off, len, 0);
        break;
    case FMT_PREALLOC_FULL:
        rc = write_zeros(co, w, w->store, off, len);
        break;
    default:
        rc = w->fresh ? 0 : stor_zero(co, w->store, off, len, STOR_UNMAP);
    }
    return rc ? failed(w, "preallocate the data area", rc) : 0;
}

/* The room for our own extension is dropped when a long name leaves none. */
static int emit_header(struct writer *w)
{
    uint64_t size = w->p->g.cluster_size;
    if (!q2_header_emit(&w->p->h, true, w->buf, size, NULL))
        return 0;
    return q2_header_emit(&w->p->h, false, w->buf, size, w->err);
}

static int write_header(struct co *co, struct writer *w)
{
    int rc = MUTANT(MUT_CREATE_HEADER_EARLY) ? 0 : stor_flush(co, w->store);
    if (rc)
        return failed(w, "flush", rc);
    rc = emit_header(w);
    if (rc)
        return rc;
    rc = write_clusters(co, w, 0, 1);
    if (rc)
        return failed(w, "write the header", rc);
    rc = stor_flush(co, w->store);
    return rc ? failed(w, "flush", rc) : 0;
}

static int write_image(struct co *co, struct writer *w, const struct fmt_create_opts *o)
{
    int rc = emit_header(w);          /* refuse before anything is written */
    if (!rc && o->data_file)
        rc = o->host ? o->host->open_data(co, o->host->arg, o->data_file, &w->data, w->err) : byre_fail(w->err, NOT_SUPPORTED, "data_file: '%s' cannot be made here", o->data_file);
    if (!rc)
        rc = set_length(co, w);
    if (!rc)
        rc = write_tables(co, w);
    if (!rc && w->p->crypt)
        rc = q2_crypt_write(co, w->store, w->p->h.crypto_off, w->p->crypt, w->o, w->err);
    if (!rc)
        rc = w->data ? make_data_file(co, w) : make_data(co, w);
    if (!rc)
        rc = write_header(co, w);
    stor_close(co, w->data);
    return rc;
}

int q2_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err)
{
    struct q2_plan p;
    int rc = q2_plan_make(o, false, &p, err);
    if (rc)
        return rc;
    struct writer w = { .p = &p, .o = o, .store = store, .err = err };
    w.buf_clusters = max_u64(CHUNK_BYTES >> p.g.cluster_bits, 1);
    w.buf = malloc(w.buf_clusters << p.g.cluster_bits);
    if (p.crypt)                      /* no byte is written without its secret */
        rc = q2_crypt_write(co, NULL, 0, p.crypt, o, err);
    if (rc)
        ;
    else if (w.buf)
        rc = store ? write_image(co, &w, o) : emit_header(&w);
    else
        rc = byre_fail(err, NOMEM, "no memory to create the image");
    free(w.buf);
    q2_plan_fini(&p);
    return rc;
}
