/* SPDX-License-Identifier: MIT
 *
 * cx_work.h: the geometry of a scenario, and its first image.
 */
#ifndef CX_WORK_H
#define CX_WORK_H

#include <stdio.h>

#include "cx_model.h"
#include "cx_world.h"

struct cx_geometry {
    char name[64];
    uint64_t cluster, size;
    unsigned refcount_bits, version;
    unsigned table;                      /* clusters of a table: the image is QED; 0: qcow2 */
    bool backing;
    bool data_file;                      /* guest data lies in file "data" */
    bool sub;                            /* extended L2 */
    bool luks;                           /* encrypted, passphrases of fx_luks.h */
    bool lazy;                           /* lazy refcounts: counts are judged when the dirty bit is away */
    uint64_t device;                     /* bytes of the block device that it lies on, full of old bytes, with no promise of zeros; 0: a file */
    uint64_t frontier, bitmap_region;
    char image[512];                     /* file to start from instead of a fresh image; "" = fresh */
};

struct cx_work {
    struct cx_geometry g;
    uint64_t seed;                       /* of the scheduler */
};

/* Makes the first image (and its model) in the world. false: says why on stderr. */
bool cx_work_prepare(struct cx_world *w, struct cx_model *m, const struct cx_work *k);
static inline const struct fmt_ops *cx_format(const struct cx_geometry *g) { return g->table ? &fmt_qed_ops : &fmt_qcow2_ops; }
/* Does the file say that it was not closed cleanly? */
static inline bool cx_marked(const struct cx_geometry *g, const struct cx_bytes *b) { return g->table ? b->data[16] & 2 : b->data[79] & 1; }
/* fmt_host.open_data while an image is made; arg: the world. */
int cx_open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err);
/* Reads the whole disk of the open node into out (CX_SECTORS_MAX sectors). */
MUST_USE int cx_read_all(struct co *co, struct cx_world *w, uint8_t *out);

#endif
