/* SPDX-License-Identifier: MIT
 *
 * qed_check_priv.h: what check found out; shared by check, repair and upgrade.
 */
#ifndef QED_CHECK_PRIV_H
#define QED_CHECK_PRIV_H

#include "fmt/qed/qed_owned.h"
#include "fmt/qed/qed_walk.h"
#include "fmt/steps.h"

struct qed_checker {
    struct qed_image *q;
    const struct qed_geom *g;
    const struct fmt_check_opts *o;
    uint64_t length, file_end, clusters;          /* bytes of the file; whole clusters of it */
    struct qed_owned owned;
    struct qed_owned shared;                      /* repair only: clusters with more than one owner */
    bool live;                                    /* the image is in use: what lies behind file_end is not for this check to judge */
    struct fmt_steps steps;                       /* of a scrub */
    uint64_t last, last_table;                    /* pointer before, and its table: is this one its neighbour? */
    bool quiet;                                   /* findings were told before */
    uint64_t told;
    uint64_t unreadable;                          /* clusters of data that cannot be moved for that */
    uint64_t may_copy;                            /* repair: bytes that may still be copied for owners of their own */
    uint64_t bad, twice;                          /* pointers that are none; pointers to data in use already */
    struct fmt_check_result res;
};

PRINTF_LIKE(4, 5) void qed_finding(struct qed_checker *k, bool fixed, const char *id, const char *fmt, ...);
/* How many findings were not told. */
void qed_findings_end(struct qed_checker *k);
/* The file as it is now; forgets all that was found. sharing: k->shared is wanted. -ENOMEM, -EIO. Suspends. */
MUST_USE int qed_check_begin(struct co *co, struct qed_checker *k, bool sharing, struct byre_err *err);
/* Looks at everything: k->res without what is fixed. in_order: as the peer does; else on all cores, as long as nothing is wrong. */
MUST_USE int qed_check_gather(struct co *co, struct qed_checker *k, bool in_order, struct byre_err *err);
void qed_checker_fini(struct qed_checker *k);
/* Gives owners anew: the header and the L1 table have one, nobody else. -ENOMEM. */
MUST_USE int qed_check_own_first(struct qed_checker *k);

/* ---- qed_repair.c ---- */
/* k: gathered. Mends what k->o->fix allows, and counts it in k->res; the rest of k->res is what is left. */
MUST_USE int qed_repair(struct co *co, struct qed_checker *k, struct byre_err *err);

/* ---- qed_edit.c: what changes on the disk ---- */

/* Entries to be changed: written sector by sector. All zeros: empty. */
struct qed_edit { uint64_t off, v; };
struct qed_edits { struct qed_edit *list; size_t count, room; bool begun; };      /* begun: a write of entries was tried */
void qed_edits_fini(struct qed_edits *e);
MUST_USE int qed_edits_add(struct qed_edits *e, uint64_t off, uint64_t v);         /* off: a multiple of 8. -ENOMEM */
MUST_USE int qed_edits_apply(struct co *co, struct qed_edits *e, struct qed_image *q);      /* no barrier; e is empty then */
/* What was copied is durable before the entries that name it, and those before anything else. e is empty then. */
MUST_USE int qed_edits_settle(struct co *co, struct qed_edits *e, struct qed_image *q);
/* Copies len bytes of the file to a place that nobody uses. No barrier. table_end: 0, or `from` is a table, and entries that are no pointers
 * before that end of the file are left out. */
struct qed_copy { uint64_t from, to, len, table_end; bool unreadable; };       /* unreadable: it failed with -EIO, and that was where it is read */
MUST_USE int qed_copy_out(struct co *co, struct qed_image *q, struct qed_copy *c);
/* The same for n whole clusters. *ret_unreadable (may be NULL): as there. */
MUST_USE int qed_copy_clusters(struct co *co, struct qed_image *q, uint64_t from, uint64_t to, uint64_t n, bool *ret_unreadable);
/* Tells of a cluster of data that stays where it is, in front of what could be cut off. */
void qed_tell_unreadable(struct qed_checker *k, uint64_t cluster);
/* A barrier between steps of repair. */
MUST_USE int qed_barrier(struct co *co, struct qed_image *q);

/* ---- qed_fill.c. Home loop. ---- */
/* What lies at the end of the file moves into the holes, beside requests. A scrub runs, and has found no error. k->o->step: as there. 0: the holes
 * that are left stay, as far as this can tell; they were told of (qed_alloc_told). -errno: what was moved stays moved. */
MUST_USE int qed_fill(struct co *co, struct qed_checker *k);

/* ---- qed_shorten.c ---- */
/* Every cluster of the file gets an owner: what lies at the end moves into the holes, and the file is cut. What cannot be read stays, and
 * k->unreadable says so. k: gathered, sound. Changes the file only: k is to be gathered again. */
MUST_USE int qed_shorten(struct co *co, struct qed_checker *k, struct byre_err *err);

#endif
