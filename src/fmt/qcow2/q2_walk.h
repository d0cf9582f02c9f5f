/* SPDX-License-Identifier: MIT
 *
 * q2_walk.h: visits every reference to host space in an image: header, active tables and data, snapshots, bitmaps,
 * encryption header, refcount table and blocks. It says what stands there and judges only form (reserved bits,
 * alignment, inside the file or not); what that means is the visitor's business. It survives every value.
 */
#ifndef Q2_WALK_H
#define Q2_WALK_H

#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_snapshot.h"

enum q2_ref_kind {
    Q2_REF_HEADER, Q2_REF_L1, Q2_REF_L2, Q2_REF_DATA, Q2_REF_ZERO, Q2_REF_COMPRESSED, Q2_REF_SNAPSHOTS, Q2_REF_CRYPTO,
    Q2_REF_BITMAP_DIR, Q2_REF_BITMAP_TABLE, Q2_REF_BITMAP_DATA, Q2_REF_RT, Q2_REF_RB,
};
const char *q2_ref_name(enum q2_ref_kind k);

struct q2_ref {
    enum q2_ref_kind kind;
    bool active;               /* found through the active L1 table */
    bool outside;              /* ends one cluster or more behind the end of the file */
    uint64_t off, bytes;       /* host range; off + bytes does not overflow */
    uint64_t weight;           /* how many times it is referenced this way (tables shared by snapshots are read once) */
    uint64_t entry_off;        /* file offset of the table entry; 0: a header field */
    uint64_t raw, bits;        /* that entry, host order; bits: its second half (extended L2) */
    uint64_t index;            /* active L1, L2 and data: guest offset; others: index in the table or list */
};

enum q2_walk_fault {
    Q2_WALK_RESERVED,          /* reserved bits are set in the entry (the rest of it was used) */
    Q2_WALK_UNALIGNED,         /* the offset is not a multiple of the cluster size (used as it stands) */
    Q2_WALK_COPIED_COMPRESSED, /* COPIED on a compressed cluster */
    Q2_WALK_ZERO_V2,           /* zero flag in a version 2 image */
    Q2_WALK_DATA_FILE,         /* an entry that cannot be, because guest data lies in an external data file: compressed, or not at the guest's offset */
    Q2_WALK_SUBCLUSTERS,       /* subclusters both allocated and zero, or allocated nowhere, or bits of a compressed cluster */
    Q2_WALK_READ,              /* a table could not be read: its references are missing */
    Q2_WALK_BAD_L1,            /* a snapshot's L1 table is misaligned or too large: its references are missing */
    Q2_WALK_BUDGET,            /* tables are referenced so often that walking them all would take without end: references are missing */
};

struct q2_visitor {
    /* Every reference. Not 0: the walk ends and returns it. May suspend. */
    int (*ref)(struct co *co, void *arg, const struct q2_ref *r);
    /* r: the entry concerned; its ref() follows if it has one. Cannot fail, must not suspend. */
    void (*fault)(void *arg, enum q2_walk_fault f, const struct q2_ref *r, int rc);
    /* Images with an external data file: every mapping of it; counts nothing in the image. May be NULL. */
    void (*data)(void *arg, const struct q2_ref *r);
    /* An L2 table begins; its entries follow. Not 0: the walk ends with that. May be NULL. */
    int (*table)(struct co *co, void *arg, const struct q2_ref *r);
    /* Every L1 and L2 entry that is not 0, before its faults and its ref(); off may be 0. May be NULL. Not 0: as ref(). */
    int (*entry)(struct co *co, void *arg, const struct q2_ref *r);
    /* May be NULL. A first look at a whole L2 table that was read, on a thread of the CPU pool: in no order, many at once,
     * each with a worker number of its own. 1: it did all there is to do, only table() follows; 0: nothing was done, the
     * table is told entry by entry in its turn; -errno ends the walk. */
    int (*bulk)(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data);
    /* May be NULL. On the loop, after some bulk() of this worker and before the next. Not 0: as ref(). */
    int (*bulked)(void *arg, unsigned worker);
};

enum { Q2_WALK_MAPPING = 1u, Q2_WALK_SNAPSHOTS = 2u, Q2_WALK_REST = 4u, Q2_WALK_ALL = 7u };

struct q2_walk {
    struct stor *store;
    const struct q2_geom *g;
    const struct q2_header *h;
    uint64_t file_bytes;
    const struct q2_snapshot_scan *snapshots;
    const struct q2_bitmap *bitmaps; uint32_t bitmap_count;
    bool bitmaps_valid;        /* count the bitmap directory that the header names */
    unsigned parts;            /* Q2_WALK_* */
    bool open_ended;           /* the file may have become longer than file_bytes before the L1 table is read: active tables there are read too */
    unsigned workers;          /* numbers that bulk() may be given, at most FMT_PIECES_WORKERS_MAX; 0: no bulk() */
    const struct q2_visitor *v; void *arg;
};
/* -ENOMEM, or what ref() returned. Suspends. */
MUST_USE int q2_walk(struct co *co, const struct q2_walk *w);

/* Does [off, off+bytes) end one cluster or more behind the end of a file? The last cluster may be cut short. */
bool q2_outside(const struct q2_geom *g, uint64_t file_bytes, uint64_t off, uint64_t bytes);

#endif
