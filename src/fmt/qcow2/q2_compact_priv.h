/* SPDX-License-Identifier: MIT
 *
 * q2_compact_priv.h: what q2_compact.c (what is to be moved) and q2_move.c (moving it) share.
 */
#ifndef Q2_COMPACT_PRIV_H
#define Q2_COMPACT_PRIV_H

#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_counts.h"
#include "fmt/qcow2/q2_walk.h"

enum q2_mover_kind { Q2_MOVER_DATA, Q2_MOVER_PACKED, Q2_MOVER_TABLE };

/* Something that an entry named when the tables were walked: a hint. Whoever moves it looks at the entry again, under its lock. */
struct q2_mover {
    uint64_t guest;                      /* of its cluster; tables: the first byte that they map */
    uint64_t host;                       /* bytes */
    enum q2_mover_kind kind;
};

struct q2_compact {
    struct q2_image *q;
    const struct fmt_compact_opts *o;
    struct fmt_compact_result *res;
    struct byre_err *err;
    uint64_t target;                     /* clusters from here on are to be left */
    bool looking;                        /* only clusters of zeros are wanted, nothing is moved */
    bool full;                           /* no hole in front of target is left */
    struct q2_mover *list; size_t count; /* found by the walk, Q2_MOVERS_MAX at most */
    struct q2_mover *tables; size_t table_count, table_room;
    struct q2_marks movable, passing;    /* clusters that can be moved; clusters that are on their way to being free */
    struct q2_counts pieces;             /* compressed clusters of the disk itself that touch a host cluster */
    uint8_t *buf, *scratch;              /* Q2_MOVE_BYTES or two clusters; one cluster */
    size_t buf_bytes;
    uint64_t unsettled;                  /* bytes moved since frees were last waited for */
    uint64_t refs;                       /* since the last pause of a walk */
    uint64_t round_moved;
    uint64_t done, total;
};

#define Q2_MOVE_BYTES (128u << 10)       /* moved under one lock, unless one cluster is larger */

/* q2_move.c. Each moves what still is where the list says, and leaves the rest. -ENOSPC: no hole left. Home; suspend. */
/* Neighbours on the host and in the guest, in one slice. */
MUST_USE int q2_move_data(struct co *co, struct q2_compact *c, const struct q2_mover *m, unsigned n);
/* Compressed clusters that follow one another in the guest, in one slice. */
MUST_USE int q2_move_packed(struct co *co, struct q2_compact *c, const struct q2_mover *m, unsigned n);
#define Q2_MOVE_PIECES 8u
MUST_USE int q2_move_table(struct co *co, struct q2_compact *c, const struct q2_mover *m);
/* From now on no write begins in place in host bytes [from, end), and those that had begun are over. */
void q2_hold(struct co *co, struct q2_image *q, uint64_t from, uint64_t end);
/* The end of that, when nobody is replacing a cluster because of it. */
void q2_unhold(struct co *co, struct q2_image *q);

/* ---- q2_shorten.c: which clusters a file could be cut to. Pure, any thread. ---- */
struct q2_shape {
    uint64_t end;                                          /* clusters of the file */
    const struct rset_range *free; size_t free_count;      /* free clusters, in order */
    uint64_t room;                                         /* how many of them can be filled */
    const struct q2_marks *movable, *passing;              /* NULL: there are none */
    const struct q2_block_at { uint64_t cluster, covers; } *blocks; size_t block_count;      /* refcount blocks in order; covers: the first cluster that it counts */
};
struct q2_aim { uint64_t target, moved; };                 /* from where on all can go; how many clusters of that must be moved */
struct q2_aim q2_shape_aim(const struct q2_shape *s);
/* The refcount blocks of an image, and the ranges of a set, for a shape. The caller frees. -ENOMEM. */
MUST_USE int q2_shape_blocks(const struct q2_image *q, struct q2_block_at **ret, size_t *ret_count);
MUST_USE int q2_shape_free(const struct rset *set, struct rset_range **ret, size_t *ret_count);

#endif
