/* SPDX-License-Identifier: MIT
 *
 * filters.h: the table of filters that the user can make. Private to graph/.
 */
#ifndef GRAPH_FILTERS_H
#define GRAPH_FILTERS_H

#include <jansson.h>

#include "graph/filter.h"

struct filter_driver {
    const char *name;                    /* "throttle" */
    const char *child;                   /* the option that names what lies below: "file" */
    const char *const *options;          /* names of its own options; ends with NULL */
    /* A node over `below` with these options, of which all names are known. */
    int (*make)(struct co *co, struct graph_node *below, const json_t *o, struct graph_node **ret_n, struct byre_err *err);
    bool may_sleep;                      /* it can be made inactive (active.h) */
};
extern const struct filter_driver filter_blkdebug, filter_cbw, filter_compress, filter_cor, filter_prealloc, filter_snapshot_access, filter_throttle;
/* NULL: no such filter. */
const struct filter_driver *filter_by_name(const char *name);
/* The child is named. */
MUST_USE int filter_add(struct co *co, struct graph *g, const struct filter_driver *f, const json_t *o, struct graph_node **ret_n, struct byre_err *err);

#endif
