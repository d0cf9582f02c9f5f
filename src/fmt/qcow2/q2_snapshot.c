/* SPDX-License-Identifier: MIT
 *
 * q2_snapshot.c: reads the snapshot table.
 *
 * Purpose      Parses every entry with bounded memory; says what is wrong with the table instead of giving up.
 * Owns         The list it returns.
 * Invariants   I1 Every id and name in a list is a C string of printable UTF-8 of at most 127 and 255 bytes.
 *              I2 The list has at most 65,536 entries and comes from at most 64 MiB of table.
 *              I3 The L1 of an entry is not followed here; l1_ok tells whether it may be.
 * Order        Reads only.
 * Concurrency  One coroutine; suspends in reads.
 * Failure      -EINVAL (Q2_SNAPSHOTS) from load for any fault; scan fails for memory and I/O only.
 * Tests        q2_tables_test.c, tests/interop/test_q2_check.py
 */
#include "fmt/qcow2/q2_snapshot.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "base/iov.h"
#include "fmt/qcow2/q2_stream.h"

#define ID_MAX 127u
#define SNAP_NAME_MAX 255u
#define EXTRA_V3_MIN 16u
#define EXTRA_KNOWN 24u

void q2_snapshots_free(struct q2_snapshot *s, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        free(s[i].id);
        free(s[i].name);
        free(s[i].extra);
    }
    free(s);
}

/* Length of the well-formed UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_step(const uint8_t *p, size_t left)
{
    if (p[0] < 0x80)
        return p[0] >= 0x20 && p[0] != 0x7f;
    size_t n = p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;
    if (!n || n > left)
        return 0;
    uint32_t c = p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    bool overlong = c < (n == 2 ? 0x80u : n == 3 ? 0x800u : 0x10000u);
    return overlong || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

/* A printable copy: bytes that are no text become '?', what is too long is cut. NULL: memory ran out. */
static char *text_copy(const uint8_t *p, size_t len, size_t max, unsigned *faults)
{
    char *s = malloc(min_u64(len, max) + 1);
    if (!s)
        return NULL;
    size_t out = 0;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_step(p + i, len - i);
        if (out + (n ? n : 1) > max) {
            *faults |= Q2_SNAP_BAD_NAME;
            break;
        }
        if (!n)
            *faults |= Q2_SNAP_BAD_NAME;
        if (n)
            memcpy(s + out, p + i, n);
        else
            s[out] = '?';
        out += n ? n : 1;
        i += n ? n : 1;
    }
    s[out] = 0;
    return s;
}

struct entry { uint32_t extra_len; uint16_t id_len, name_len; };

static void parse_fixed(const struct q2_geom *g, const uint8_t *p, struct q2_snapshot *sn, struct entry *e)
{
    const struct q2_disk_snapshot *d = (const struct q2_disk_snapshot *)p;
    sn->l1_off = be64_get(&d->l1_off);
    sn->l1_size = be32_get(&d->l1_size);
    sn->l1_ok = q2_table_ok(g, sn->l1_off, sn->l1_size, 8, Q2_L1_BYTES_MAX) && (sn->l1_off || !sn->l1_size);
    sn->date_sec = be32_get(&d->date_sec);
    sn->date_nsec = be32_get(&d->date_nsec);
    sn->vm_clock_ns = be64_get(&d->vm_clock_ns);
    sn->vm_state_size = be32_get(&d->vm_state_size);
    *e = (struct entry){ be32_get(&d->extra_len), be16_get(&d->id_len), be16_get(&d->name_len) };
}

static void parse_extra(const uint8_t *p, uint32_t len, struct q2_snapshot *sn)
{
    struct rcur c = rcur_of(p, len);
    if (len >= 8)
        sn->vm_state_size = rcur_be64(&c);
    if (len >= 16) {
        sn->disk_size = rcur_be64(&c);
        sn->has_disk_size = true;
    }
    if (len >= EXTRA_KNOWN) {
        sn->icount = rcur_be64(&c);
        sn->has_icount = sn->icount != UINT64_MAX;
    }
}

static int read_strings(struct co *co, struct q2_stream *st, const struct entry *e, struct q2_snapshot *sn, unsigned *faults)
{
    const uint8_t *p;
    int rc = q2_stream_get(co, st, e->id_len, &p);
    if (rc)
        return rc;
    sn->id = text_copy(p, e->id_len, ID_MAX, faults);
    rc = q2_stream_get(co, st, e->name_len, &p);
    if (rc)
        return rc;
    sn->name = text_copy(p, e->name_len, SNAP_NAME_MAX, faults);
    return sn->id && sn->name ? 0 : -ENOMEM;
}

/* Extra data that nobody here knows. */
static int read_extra(struct co *co, struct q2_stream *st, struct q2_snapshot *sn)
{
    const uint8_t *p;
    int rc = q2_stream_get(co, st, sn->extra_len, &p);
    if (rc || !sn->extra_len)
        return rc;
    sn->extra = malloc(sn->extra_len);
    if (!sn->extra)
        return -ENOMEM;
    memcpy(sn->extra, p, sn->extra_len);
    return 0;
}

/* One entry. -ENODATA: the table is cut. *sn may hold strings on failure. */
static int read_entry(struct co *co, struct q2_stream *st, const struct q2_geom *g, uint64_t virtual_size, struct q2_snapshot *sn, unsigned *faults)
{
    const uint8_t *p;
    struct entry e;
    uint64_t start = st->pos;
    int rc = q2_stream_get(co, st, sizeof(struct q2_disk_snapshot), &p);
    if (rc)
        return rc;
    if (mem_is_zero(p, sizeof(struct q2_disk_snapshot))) {
        *faults |= Q2_SNAP_ENDED;
        return 0;
    }
    parse_fixed(g, p, sn, &e);
    if (e.extra_len > Q2_SNAPSHOT_EXTRA_MAX)
        *faults |= Q2_SNAP_BIG_EXTRA;
    if (g->version >= 3 && e.extra_len < EXTRA_V3_MIN)
        *faults |= Q2_SNAP_SHORT_EXTRA;
    sn->disk_size = virtual_size;
    uint32_t known = (uint32_t)min_u64(e.extra_len, EXTRA_KNOWN);
    if ((rc = q2_stream_get(co, st, known, &p)))
        return rc;
    parse_extra(p, known, sn);
    sn->extra_len = (uint32_t)min_u64(e.extra_len, Q2_SNAPSHOT_EXTRA_MAX) - known;
    if ((rc = read_extra(co, st, sn)) || (rc = q2_stream_skip(st, e.extra_len - known - sn->extra_len)) || (rc = read_strings(co, st, &e, sn, faults)))
        return rc;
    return q2_stream_skip(st, min_u64(-(st->pos - start) & 7, st->end - st->pos));
}

/* Zeros from here on: counts what is missing as entries without content. */
static void scan_ended(struct q2_snapshot_scan *scan, uint32_t missing)
{
    scan->bad_entries += missing;
    scan->table_bytes += (uint64_t)missing * sizeof(struct q2_disk_snapshot);
}

static int scan_entries(struct co *co, struct q2_stream *st, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot_scan *scan)
{
    uint32_t want = (uint32_t)min_u64(h->nb_snapshots, Q2_SNAPSHOTS_MAX), room = 0;
    uint64_t start = st->pos;
    for (uint32_t i = 0; i < want; i++) {
        if (i == room) {
            room = room ? room * 2 : 16;
            struct q2_snapshot *bigger = realloc(scan->snapshots, room * sizeof *bigger);
            if (!bigger)
                return -ENOMEM;
            scan->snapshots = bigger;
        }
        struct q2_snapshot *sn = &scan->snapshots[i];
        *sn = (struct q2_snapshot){ 0 };
        unsigned faults = 0;
        int rc = read_entry(co, st, g, h->size, sn, &faults);
        if (rc == -ENODATA)
            faults |= Q2_SNAP_CUT;
        if (faults && !scan->faults)
            scan->first_bad = i;
        scan->faults |= faults;
        scan->bad_entries += (faults & (Q2_SNAP_BIG_EXTRA | Q2_SNAP_SHORT_EXTRA)) != 0;
        if (rc) {
            free(sn->id);
            free(sn->name);
            free(sn->extra);
            return rc == -ENODATA ? 0 : rc;
        }
        if (faults & Q2_SNAP_ENDED) {
            scan_ended(scan, h->nb_snapshots > Q2_SNAPSHOTS_MAX ? 1 : want - i);
            return 0;
        }
        scan->count = i + 1;
        scan->table_bytes = st->pos - start;
    }
    return 0;
}

int q2_snapshots_scan(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot_scan *ret)
{
    struct q2_snapshot_scan scan = { 0 };
    struct q2_stream st;
    uint64_t file;
    *ret = scan;
    if (!h->nb_snapshots)
        return 0;
    int rc = stor_length(co, s, &file);
    if (rc)
        return rc;
    rc = q2_stream_init(&st, s, h->snapshots_off, h->snapshots_off + Q2_SNAPSHOT_TABLE_MAX);
    if (!rc)
        rc = scan_entries(co, &st, g, h, &scan);
    q2_stream_fini(&st);
    if (rc) {
        q2_snapshots_free(scan.snapshots, scan.count);
        return rc;
    }
    if (h->nb_snapshots > Q2_SNAPSHOTS_MAX) {
        if (!scan.faults)
            scan.first_bad = Q2_SNAPSHOTS_MAX;
        scan.faults |= Q2_SNAP_COUNT;
    }
    if (!range_inside(h->snapshots_off, scan.table_bytes, round_up(file, g->cluster_size)))
        scan.faults |= Q2_SNAP_OUTSIDE;
    *ret = scan;
    return 0;
}

static const char *fault_text(unsigned faults)
{
    if (faults & Q2_SNAP_OUTSIDE)
        return "the table ends behind the end of the file";
    if (faults & Q2_SNAP_ENDED)
        return "there is nothing in its place";
    if (faults & Q2_SNAP_CUT)
        return "the table is longer than 64 MiB";
    if (faults & Q2_SNAP_BIG_EXTRA)
        return "it has more than 1024 bytes of extra data";
    if (faults & Q2_SNAP_BAD_NAME)
        return "its id or name is too long or not text";
    return "there are more than 65536 entries";
}

int q2_snapshots_scan_sound(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot_scan *ret, struct byre_err *err)
{
    struct q2_snapshot_scan scan;
    int rc = q2_snapshots_scan(co, s, g, h, &scan);
    if (rc)
        return byre_fail_code(err, IO, rc, "%s: the snapshot table cannot be read: %s", s->name, strerror(-rc));
    /* Writers of version 3 left the extra data out for years: tolerated as the peer does. */
    unsigned fatal = scan.faults & ~(unsigned)Q2_SNAP_SHORT_EXTRA;
    if (fatal) {
        q2_snapshots_free(scan.snapshots, scan.count);
        return byre_fail(err, Q2_SNAPSHOTS, "%s: snapshot table entry %" PRIu32 " is refused: %s", s->name, scan.first_bad, fault_text(fatal));
    }
    *ret = scan;
    return 0;
}

int q2_snapshots_load(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot **ret, uint32_t *ret_count, struct byre_err *err)
{
    struct q2_snapshot_scan scan;
    int rc = q2_snapshots_scan_sound(co, s, g, h, &scan, err);
    if (rc)
        return rc;
    *ret = scan.snapshots;
    *ret_count = scan.count;
    return 0;
}

bool q2_snapshot_text_ok(const char *text, bool is_id)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t len = strlen(text);
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_step(p + i, len - i);
        if (!n)
            return false;
    }
    return len <= (is_id ? ID_MAX : SNAP_NAME_MAX);
}
