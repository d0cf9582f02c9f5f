/* SPDX-License-Identifier: MIT
 *
 * q2_snapshot.h: the snapshot table with its faults, for check and repair. Everybody else uses q2_snapshots_load
 * (q2_image.h), which refuses a table that has any.
 */
#ifndef Q2_SNAPSHOT_H
#define Q2_SNAPSHOT_H

#include "fmt/qcow2/q2_image.h"

enum {
    Q2_SNAP_BIG_EXTRA = 1u << 0,       /* more than 1024 bytes of extra data: the known part is used */
    Q2_SNAP_SHORT_EXTRA = 1u << 1,     /* version 3 asks for 16 bytes of extra data */
    Q2_SNAP_BAD_NAME = 1u << 2,        /* id or name too long, not UTF-8 or with control characters */
    Q2_SNAP_CUT = 1u << 3,             /* the table goes on behind 64 MiB: the rest is not in the list */
    Q2_SNAP_COUNT = 1u << 4,           /* more than 65,536 entries: the rest is not in the list */
    Q2_SNAP_ENDED = 1u << 6,           /* zeros stand where further entries should: they are not in the list */
    Q2_SNAP_OUTSIDE = 1u << 5,         /* the table goes on behind the end of the file (read as zeros) */
};

struct q2_snapshot_scan {
    struct q2_snapshot *snapshots;
    uint32_t count;
    uint64_t table_bytes;              /* from the first byte of the table to the end of the last entry read */
    unsigned faults;                   /* Q2_SNAP_* of all entries together */
    uint32_t first_bad;                /* index of the first entry with a fault */
    uint32_t bad_entries;              /* entries with BIG_EXTRA or SHORT_EXTRA, and those missing behind the end */
};

/* Reads as much of the table as can be read. Fails only for -ENOMEM and errors of the store. Release with
 * q2_snapshots_free(scan.snapshots, scan.count). Suspends. */
MUST_USE int q2_snapshots_scan(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot_scan *ret);
/* The same, and -EINVAL (Q2_SNAPSHOTS) for any fault that is not tolerated. */
MUST_USE int q2_snapshots_scan_sound(struct co *co, struct stor *s, const struct q2_geom *g, const struct q2_header *h, struct q2_snapshot_scan *ret, struct byre_err *err);
/* May this be an id, or a name, in the table? Pure. */
bool q2_snapshot_text_ok(const char *text, bool is_id);
/* Bytes of a snapshot table that holds the list (buf NULL: the length only). */
uint64_t q2_snapshots_emit(const struct q2_snapshot_scan *scan, const struct q2_geom *g, uint8_t *buf);

#endif
