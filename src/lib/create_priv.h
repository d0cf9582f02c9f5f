/* SPDX-License-Identifier: MIT
 *
 * create_priv.h: options of creation, shared by create.c and measure.c.
 */
#ifndef LIB_CREATE_PRIV_H
#define LIB_CREATE_PRIV_H

#include "graph/making.h"
#include "lib/lib_priv.h"

struct create {
    struct byre_ctx *ctx;
    const char *filename;            /* for messages too */
    struct byre_create_opts o;
    const struct fmt_ops *ops;
    const struct opt_row *rows;
    uint64_t seen;                   /* rows given in lists */
    bool remote;                     /* filename is an export of a server */
    bool has_size, made_file, made_data;
    bool has_data;                   /* the format has its data file */
    struct graph_making *making, *making_data;
    struct fmt_create_opts fo;       /* create_fini frees its strings */
    struct byre_err *err;
};

/* Fills ops, rows and fo out of o. */
MUST_USE int create_settle(struct create *c, struct byre_err *err);
void create_fini(struct create *c);

#endif
