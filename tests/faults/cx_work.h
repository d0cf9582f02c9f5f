/* SPDX-License-Identifier: MIT
 *
 * cx_work.h: a workload as a list of operations (made from a seed, or read from a file), and running it.
 *
 * Text form, one line each: "geometry cs=4096 size=131072 ...", then "write OFF LEN", "zero OFF LEN", "unmap OFF LEN",
 * "discard OFF LEN", "flush", "grow BYTES", "shrink BYTES", "reopen", "repair"; "&" in front: runs together with the
 * operation before it. '#' starts a comment.
 */
#ifndef CX_WORK_H
#define CX_WORK_H

#include <stdio.h>

#include "cx_model.h"
#include "cx_world.h"

enum cx_kind { CX_O_WRITE, CX_O_ZERO, CX_O_UNMAP, CX_O_DISCARD, CX_O_FLUSH, CX_O_GROW, CX_O_SHRINK, CX_O_REOPEN, CX_O_REPAIR, CX_O_KINDS };
struct cx_step { enum cx_kind kind; bool together; uint64_t off, len; };

struct cx_geometry {
    char name[64];
    uint64_t cluster, size;
    unsigned refcount_bits, version;
    bool backing;
    bool data_file;                      /* guest data lies in file "data" */
    bool sub;                            /* extended L2 */
    bool luks;                           /* encrypted, passphrases of fx_luks.h */
    bool lazy;                           /* lazy refcounts: counts are judged when the dirty bit is away */
    uint64_t frontier, bitmap_region;
    char image[512];                     /* file to start from instead of a fresh image; "" = fresh */
    bool resize;                         /* grow and shrink are drawn too */
    bool big;                            /* long requests, so that much is allocated in a few steps */
    bool churn;                          /* mostly discard, zero and rewrite of the same few clusters */
};

struct cx_work {
    struct cx_geometry g;
    uint64_t seed;                       /* of the scheduler */
    struct cx_step *steps;
    unsigned count, cap;
};

void cx_work_draw(struct cx_work *w, const struct cx_geometry *g, uint64_t seed, unsigned count);
void cx_work_print(const struct cx_work *w, FILE *f);
bool cx_work_read(struct cx_work *w, FILE *f);
void cx_work_add(struct cx_work *w, struct cx_step s);
void cx_work_fini(struct cx_work *w);

/* Makes the first image (and its model) in the world. false: says why on stderr. */
bool cx_work_prepare(struct cx_world *w, struct cx_model *m, const struct cx_work *k);
/* Runs it all, recorded. false: an operation failed or nothing could run. */
bool cx_work_run(struct cx_world *w, struct cx_model *m, const struct cx_work *k);
/* fmt_host.open_data while an image is made; arg: the world. */
int cx_open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err);
/* Reads the whole disk of the open node into out (CX_SECTORS_MAX sectors). */
MUST_USE int cx_read_all(struct co *co, struct cx_world *w, uint8_t *out);

#endif
