/* SPDX-License-Identifier: MIT
 *
 * byre/nbd.h: what NBD servers offer. Their disks are opened by byre_open, under names like nbd://host/export.
 */
#ifndef BYRE_NBD_H
#define BYRE_NBD_H

#include "byre/base.h"
#include "byre/ctx.h"

#ifdef __cplusplus
extern "C" {
#endif

struct byre_nbd_export {
    const char *name;                    /* "" is a name, too */
    const char *description;             /* NULL: none */
    const char *unknown;                 /* not NULL: why the server tells nothing of what follows */
    uint64_t size;                       /* bytes */
    uint16_t flags;                      /* transmission flags of the NBD protocol ("Transmission flags") */
    uint64_t min_block, preferred_block, max_block;      /* bytes; 0: not told */
    const char *const *contexts;         /* meta contexts, context_count names */
    unsigned context_count;
};
struct byre_nbd_list;

/* Asks the server for its exports; uri as byre_open takes it, and the name of an export in it does not matter. Takes seconds when the
 * server is slow. *ret_list is freed by byre_nbd_list_free. BYRE_E_BAD_ARGUMENT: no such name; others: what went wrong on the way. */
BYRE_EXPORT BYRE_MUST_USE int byre_nbd_list(struct byre_ctx *ctx, const char *uri, struct byre_nbd_list **ret_list, struct byre_err *err);
BYRE_EXPORT unsigned byre_nbd_list_count(const struct byre_nbd_list *list);
/* i below the count; valid until the list is freed. */
BYRE_EXPORT struct byre_nbd_export byre_nbd_list_get(const struct byre_nbd_list *list, unsigned i);
BYRE_EXPORT void byre_nbd_list_free(struct byre_nbd_list *list);                 /* NULL ok */

#ifdef __cplusplus
}
#endif
#endif
