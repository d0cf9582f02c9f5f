/* SPDX-License-Identifier: MIT
 *
 * qed_create.c: writes a fresh image.
 *
 * Purpose      Header, backing name, and an L1 table of zeros.
 * Owns         Nothing.
 * Invariants   I1 All options are judged before anything is written.
 *              I2 Until the last write the file holds no QED header: a crash leaves a file that is no image.
 * Order        Length 0, new length (which reads as zeros: the L1 table), flush, header with the name, flush.
 * Concurrency  One coroutine on one loop; suspends in I/O.
 * Failure      The first error ends it; what was written so far stays behind (the caller removes the file).
 * Tests        qed_read_test.c, tests/cli/qed_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/mutant.h"
#include "fmt/qed/qed_image.h"

#define CLUSTER_DEFAULT 65536u
#define TABLE_DEFAULT 4u
#define FIRST_BYTES (1u << QED_CLUSTER_BITS_MIN)      /* holds the header and the longest name */

static int check_name(const struct fmt_create_opts *o, struct byre_err *err)
{
    if (o->backing_fmt && !o->backing_file)
        return byre_fail(err, BAD_OPTION, "backing_fmt: '%s' without a backing_file", o->backing_fmt);
    size_t len = o->backing_file ? strlen(o->backing_file) : 0;
    if (o->backing_file && (!len || len > QED_NAME_MAX))
        return byre_fail(err, BAD_OPTION, "backing_file: a name of %zu bytes cannot be stored (1 to %u)", len, QED_NAME_MAX);
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)o->backing_file[i] < 0x20 || o->backing_file[i] == 0x7f)
            return byre_fail(err, BAD_OPTION, "backing_file: the name contains control characters");
    return 0;
}

static int plan(const struct fmt_create_opts *o, struct qed_header *h, struct byre_err *err)
{
    uint64_t cluster = o->cluster_size ? o->cluster_size : CLUSTER_DEFAULT, table = o->table_size ? o->table_size : TABLE_DEFAULT;
    if (!qed_cluster_size_ok(cluster))
        return byre_fail(err, BAD_OPTION, "cluster_size: %" PRIu64 " is not a power of two from 4k to 64M", cluster);
    if (!qed_table_size_ok(table))
        return byre_fail(err, BAD_OPTION, "table_size: %" PRIu64 " is not a power of two from 1 to %u", table, QED_TABLE_SIZE_MAX);
    *h = (struct qed_header){ .cluster_size = (uint32_t)cluster, .table_size = (uint32_t)table, .header_clusters = 1, .l1_off = cluster, .size = o->size };
    struct qed_geom g = qed_header_geom(h);
    if (o->size > g.size_max)
        return byre_fail(err, BAD_SIZE, "size: %" PRIu64 " bytes are too large for cluster_size %" PRIu64 " and table_size %" PRIu64 " (the limit is %" PRIu64 ")",
                         o->size, cluster, table, g.size_max);
    if (o->backing_file) {
        h->features = QED_F_BACKING | (o->backing_fmt && !strcmp(o->backing_fmt, "raw") ? QED_F_BACKING_RAW : 0);
        h->backing_off = sizeof(struct qed_disk_header);
        h->backing_len = (uint32_t)strlen(o->backing_file);
    }
    return check_name(o, err);
}

static int failed(struct stor *s, const char *what, int r, struct byre_err *err)
{
    if (r == -ENOSPC)
        return byre_fail(err, NO_SPACE, "%s: no space left to %s", s->name, what);
    return byre_fail_code(err, IO, r, "%s: cannot %s: %s", s->name, what, strerror(-r));
}

static int write_image(struct co *co, struct stor *s, const struct qed_header *h, const char *backing, struct byre_err *err)
{
    struct qed_geom g = qed_header_geom(h);
    AUTOFREE uint8_t *first = calloc(1, FIRST_BYTES);
    if (!first)
        return byre_fail(err, NOMEM, "no memory to create the image");
    qed_header_emit(h, (struct qed_disk_header *)first);
    memcpy(first + h->backing_off, backing ? backing : "", h->backing_len);
    int r = stor_truncate(co, s, 0);
    if (!r)
        r = stor_truncate(co, s, h->l1_off + g.table_bytes);
    if (!r && !MUTANT(MUT_CREATE_OVER_HEADER))
        r = stor_flush(co, s);                                                       /* I2, Q28 */
    if (r)
        return failed(s, "set the length of the file", r, err);
    r = stor_write_buf(co, s, first, FIRST_BYTES, 0, 0);
    if (!r)
        r = stor_flush(co, s);
    return r ? failed(s, "write the header", r, err) : 0;
}

int qed_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err)
{
    struct qed_header h;
    int r = plan(o, &h, err);
    if (r || !store)
        return r;
    if (!store->traits.regular)
        return byre_fail(err, NOT_SUPPORTED, "%s: images of the format qed grow at the end of a file; they cannot be made on a device", store->name);
    return write_image(co, store, &h, o->backing_file, err);
}
