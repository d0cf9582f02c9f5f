/* SPDX-License-Identifier: MIT
 *
 * q2_snap_priv.h: what q2_snap*.c share: one operation on internal snapshots under way.
 */
#ifndef Q2_SNAP_PRIV_H
#define Q2_SNAP_PRIV_H

#include "base/mutant.h"
#include "fmt/qcow2/q2_shift.h"
#include "fmt/qcow2/q2_snapshot.h"

struct q2_snap {
    struct q2_image *q;
    const struct fmt_snapshot_req *rq;
    struct byre_err *err;
    struct q2_snapshot_scan old;       /* the table as it is */
    struct q2_snapshot *it;            /* the one applied, deleted (in `old`) or made */
    struct q2_snapshot made;           /* CREATE: owns its strings */
    uint64_t entries;                  /* L1 entries that its disk needs */
    uint64_t table_bytes, l1_bytes;    /* space that is to be had for a new snapshot table and a copied L1 */
    struct q2_run table, l1;           /* the same, counted; count 0: none */
    bool named;                        /* the header on the disk may name them: they are not given back */
    bool switched;                     /* the header does, durably: the operation has taken place */
    uint64_t file_bytes;
    struct q2_shift shift;
    struct q2_tree mine, its;          /* tables of the disk, and of the snapshot */
    uint64_t *words;                   /* an L1 table in disk order, l1 alignment */
};

static inline uint64_t q2_run_off(const struct q2_image *q, const struct q2_run *r) { return r->count ? r->cluster << q->g.cluster_bits : 0; }

/* q2_snap_create.c, q2_snap_apply.c, q2_snap_delete.c: look whether it can be done and say how much space is needed; do it,
 * with passes held off. Both fill err. */
MUST_USE int q2_snap_create_plan(struct co *co, struct q2_snap *s);
MUST_USE int q2_snap_create(struct co *co, struct q2_snap *s);
MUST_USE int q2_snap_apply_plan(struct co *co, struct q2_snap *s);
MUST_USE int q2_snap_apply(struct co *co, struct q2_snap *s);
MUST_USE int q2_snap_delete_plan(struct co *co, struct q2_snap *s);
MUST_USE int q2_snap_delete(struct co *co, struct q2_snap *s);

/* ---- q2_snap.c ---- */
/* Fills err for a failure of a step; -EUCLEAN and -ERANGE of shift are told with cluster and count. Returns r. */
int q2_snap_fail(struct q2_snap *s, int r, const char *what);
/* The snapshot that was asked for; NULL: none (err is filled). */
MUST_USE struct q2_snapshot *q2_snap_find(const struct q2_image *q, const struct q2_snapshot_scan *list, const struct fmt_snapshot_pick *pick, struct byre_err *err);
/* A zeroed buffer for n L1 entries, in whole sectors; NULL: no memory. */
uint64_t *q2_snap_words(uint64_t n);
static inline uint64_t q2_snap_words_bytes(uint64_t n) { return round_up(max_u64(n * 8, 1), 512); }
/* The first n words of the active L1 table, in disk order. */
void q2_snap_active_words(const struct q2_image *q, uint64_t *words, uint64_t n);
/* The snapshot's own L1 table, its first n words. -EUCLEAN: it lies outside the file. */
MUST_USE int q2_snap_read_l1(struct co *co, const struct q2_snap *s, uint64_t *words, uint64_t n);
/* N2 of q2_snap.c: q2_shift_check, and the space taken is nobody's. */
MUST_USE int q2_snap_check(struct co *co, struct q2_snap *s);
/* Writes a snapshot table of `list` to s->table. */
MUST_USE int q2_snap_write_table(struct co *co, struct q2_snap *s, const struct q2_snapshot_scan *list);
/* Switches the header to a table of `count` snapshots at s->table. */
MUST_USE int q2_snap_switch_table(struct co *co, struct q2_snap *s, uint32_t count);
/* Counts down, flags of the active disk where they have become right, space given back; then everything is durable.
 * Behind the switch. drop_off, drop_bytes: a table that nothing names any more, besides the old snapshot table. */
MUST_USE int q2_snap_settle(struct co *co, struct q2_snap *s, bool flags, uint64_t drop_off, uint64_t drop_bytes);

#endif
