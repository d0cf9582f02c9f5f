/* SPDX-License-Identifier: MIT
 *
 * image.h: the initial images of the crash workloads: qcow2 bytes laid out here, by the specification and not by the
 * engine, with everything a workload may meet: data, zero clusters, compressed clusters, a snapshot that shares
 * clusters and tables, a bitmap, free clusters full of old bytes.
 */
#ifndef SIM_IMAGE_H
#define SIM_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/world.h"

#define SIM_DISK_NAME "disk.qcow2"
#define SIM_BASE_NAME "base.raw"
#define SIM_DATA_NAME "data.raw"
#define SIM_OTHER_NAME "other.raw"
#define SIM_WINDOWS_MAX 3u

enum { SIM_GEN_FIRST = 1, SIM_GEN_BELOW = 2, SIM_GEN_SNAPSHOT = 3, SIM_GEN_JUNK = 4, SIM_GEN_OTHER = 5, SIM_GEN_USER = 16 };

struct sim_window { uint64_t off, len; };

struct sim_geom {
    const char *name;
    unsigned version, cluster_bits, refcount_order;
    unsigned table;                      /* clusters of a table: the image is QED (qed.c), not qcow2; 0: qcow2 */
    uint64_t size, size_max;             /* guest bytes at first; most that a resize makes of it */
    struct sim_window window[SIM_WINDOWS_MAX];   /* where the workloads write; the rest of the guest is never touched */
    unsigned windows;
    uint64_t backing;                    /* bytes of the raw backing image; 0: none */
    bool snapshot, compressed, zeros, bitmap;
    bool data_file, data_raw;            /* guest data lies in SIM_DATA_NAME; which is a raw image of its own */
    bool packs, zstd;                    /* workloads write compressed clusters too; their method */
    bool sub;                            /* extended L2: 32 subclusters per cluster */
    bool bitmaps;                        /* actions on bitmaps are part of the workloads */
    uint64_t bitmap_region;              /* bytes, fmt_open_opts.bitmap_region_bytes */
    uint32_t header_tail;                /* bytes of header fields that we do not know; so that the bitmaps extension lies across two sectors */
    uint32_t other_ext;                  /* bytes of an extension of another program in the header; 0: there is none */
    bool header_full;                    /* and no room to move it into one sector: to write the set anew may lose all bitmaps (Q17) */
    uint64_t frontier;                   /* bytes, fmt_open_opts.frontier_bytes */
    uint64_t fill_to;                    /* clusters of the snapshot alone fill the file up to here (growth of the refcount table) */
    uint32_t block;                      /* request alignment of the store; 0: 1 */
    bool no_holes;                       /* no free clusters: the file grows at once */
    bool beyond;                         /* clusters mapped behind the end, as an interrupted shrink leaves them */
    bool hurt;                           /* counts and COPIED flags are damaged (by the seed): only repair is run on it */
    bool keep;                           /* opened with discard-no-unref */
    bool luks;                           /* guest data is encrypted (sim/luks.h) */
    bool amend;                          /* version and width of the counts change in the workloads */
    bool scrub;                          /* opened at once also when dirty; scrubs run beside the requests */
    bool compact;                        /* compactions run beside the requests; holes at first, and clusters of zeros */
    bool tail;                           /* QED: holes everywhere at first, tables behind their data, the L1 table last */
    bool unclean;                        /* with scrub: dirty and damaged (by the seed) in the beginning, as `hurt` */
    bool clean;                          /* cached tables are dropped a millisecond after their last use */
    bool chain;                          /* it is committed into its backing image, and rebased to SIM_OTHER_NAME and back, in the workloads. No
                                            discards: what they show depends on what lies below */
    bool state;                          /* the VM state behind the disk is written in the workloads */
    bool lazy;                           /* lazy refcounts: while the dirty bit is set counts may be anything */
    bool no_zero_growth, no_punch, no_zero;
    uint64_t device;                     /* bytes of the device that it lies on, old bytes behind its end; 0: a file */
    bool one_write_space;                /* plain resizes are left out of the workloads (snapshots, version 2); preallocated growth is not */
    unsigned floor;                      /* distinct states that `make check` must reach */
};

/* May snapshots be made on it? Counts of one bit, and a data file, allow none; the audit knows the backing image as it was at first
 * alone. While an image is unclean it refuses them, and another size: they are left out then. */
static inline bool sim_geom_snaps(const struct sim_geom *g)
{
    return !g->table && g->refcount_order && !g->hurt && !g->data_file && !g->chain;
}

const struct sim_geom *sim_geom_find(const char *name);
const struct sim_geom *sim_geom_nth(unsigned i);       /* NULL at the end */

/* What the guest sees in the beginning: one generation per sector of size_max. */
struct sim_image {
    const struct sim_geom *g;
    uint32_t *gens, *below, *snap;       /* snap: content of the snapshot, SIM_GEN_NONE: not looked at; NULL: no snapshot */
    uint64_t sectors;
    uint64_t lost;                       /* QED: clusters that nothing names in an image without the mark */
    uint64_t snap_size;                  /* bytes of the disk as the snapshot has it */
};

/* Makes the files SIM_DISK_NAME, SIM_BASE_NAME, SIM_DATA_NAME and SIM_OTHER_NAME of w (which must not exist yet) and tells what they hold. seed: which damage. */
void sim_image_build(struct sim_world *w, const struct sim_geom *g, uint64_t seed, struct sim_image *ret);
void sim_image_fini(struct sim_image *im);

/* ---- qed.c: the same for QED ---- */
void sim_qed_build(struct sim_disk *d, struct sim_image *im);
struct sim_audit;
/* false: no QED file. */
bool sim_qed_audit(const struct sim_disk *d, struct sim_audit *ret);
static inline const char *sim_geom_format(const struct sim_geom *g) { return g->table ? "qed" : "qcow2"; }

/* ---- audit.c: reads the bytes of a qcow2 file on its own, knows nothing of the engine ---- */
struct sim_audit {
    bool broken;                         /* a table cannot be followed */
    bool marked;                         /* the dirty or the corrupt bit is set */
    uint64_t low;                        /* counts below the references: corruption. QED: clusters with two owners */
    uint64_t leaks;                      /* sum of counts above the references */
    uint64_t copied_wrong;               /* COPIED set where there is more than one reference */
    uint64_t outside;                    /* references behind the end of the file */
    char text[160];                      /* the first fault */
};
/* copied_strict: COPIED must also be set where the count is 1 (not required by the promise; for tests of the audit). */
void sim_audit(const struct sim_disk *d, struct sim_audit *ret);
/* What was found first is what is told. */
__attribute__((format(printf, 2, 3))) void sim_audit_note(struct sim_audit *r, const char *fmt, ...);
/* Generations of a snapshot's sectors into gens[0..sectors), by its name; SIM_GEN_NONE: unreadable. *ret_size: bytes of its disk.
 * false: there is no snapshot of that name. */
bool sim_audit_snapshot(const struct sim_disk *d, const char *name, const uint32_t *below, uint32_t *gens, uint64_t sectors, uint64_t *ret_size);
/* How many snapshots the header speaks of. */
uint32_t sim_audit_snapshots(const struct sim_disk *d);

#endif
