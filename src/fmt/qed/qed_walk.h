/* SPDX-License-Identifier: MIT
 *
 * qed_walk.h: visits every entry of all tables, as they are on the disk. Shared by check, repair and upgrade.
 */
#ifndef QED_WALK_H
#define QED_WALK_H

#include "fmt/pieces.h"
#include "fmt/qed/qed_image.h"

#define QED_PIECE_BYTES (1u << 20)                /* tables are read in pieces of at most this */

/* What is not 0 in the L1 table, or in an L2 table. */
struct qed_ref {
    uint64_t v;                                   /* the entry, in host order */
    uint64_t entry_off;                           /* where it stands, byte of the file */
    uint64_t i;                                   /* table(): entry of the L1 table. entry(): guest offset */
    uint64_t table;                               /* entry(): byte offset of its L2 table */
};

struct qed_visitor {
    /* Each entry of the L1 table, in order. 1: its L2 table is visited. 0: it is not. < 0 ends the walk. Suspends. */
    int (*table)(struct co *co, void *arg, const struct qed_ref *r);
    /* Each entry of an L2 table, in order. < 0 ends the walk. Suspends. */
    int (*entry)(struct co *co, void *arg, const struct qed_ref *r);
    /* A table cannot be read, or a part of it. < 0 ends the walk. */
    int (*unreadable)(void *arg, bool l1, uint64_t off, int error);
    /* May be NULL. On a thread of the CPU pool, many at once, in no order: a piece of a table, whose first entry is of guest offset
     * `guest`; instead of entry(). What it puts into sum goes to summed(), in order. < 0 ends the walk. */
    int (*work)(void *arg, unsigned worker, uint64_t guest, const le64 *words, uint64_t n, uint64_t sum[4]);
    void (*summed)(void *arg, uint64_t guest, const uint64_t sum[4]);
};

struct qed_walk {
    const struct qed_image *q;                    /* its header and geometry; nothing that is cached */
    const struct qed_visitor *v;
    void *arg;
    bool strict;                                  /* table() is called when all tables before are done; else some tables ahead */
    unsigned workers;                             /* with work() */
};

/* Bytes of a table are read only where the file has data. -ENOMEM, or what a callback returned. Suspends. */
MUST_USE int qed_walk(struct co *co, const struct qed_walk *w);

/* The next piece of a table that may hold something: skips holes of the file from byte *at of the table on. 1: there is one, [*at, *at +
 * *ret_len); 0: the table ends. Suspends. */
MUST_USE int qed_table_piece(struct co *co, const struct qed_image *q, uint64_t table, uint64_t *at, uint64_t *ret_len);

#endif
