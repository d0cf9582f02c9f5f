/* SPDX-License-Identifier: MIT
 *
 * throttle.h: groups of nodes that share a budget of bytes and requests per second (FEATURES 3.050, 3.075, 9.091 to 9.094).
 *
 * A group is made with limits, used by throttle nodes of one graph, and given other limits at any time. A member is a filter; requests wait in
 * it in the order in which they came. Who drains waits for nobody: requests then pass, and count.
 *
 * Concurrency  Home loop, but for what filters call.
 */
#ifndef GRAPH_THROTTLE_H
#define GRAPH_THROTTLE_H

#include <jansson.h>

#include "graph/runtime.h"

enum throttle_unit { THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_BPS_WRITE, THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_READ, THROTTLE_IOPS_WRITE, THROTTLE_UNITS };
/* Per second on the average; at most for a while (0: a tenth of a second's worth at once); that while in seconds (0: 1). */
struct throttle_limit { uint64_t avg, max, length; };
struct throttle_limits { struct throttle_limit of[THROTTLE_UNITS]; uint64_t iops_size; };

/* Changes *l by a member of the form "bps-total", "iops-read-max", "bps-write-max-length", "iops-size". 1: taken; 0: it is none. */
MUST_USE int throttle_option(struct throttle_limits *l, const char *key, const json_t *v, struct byre_err *err);
/* Names of such members, in a fixed order; NULL behind the last. *ret: what it is in l. */
const char *throttle_nth(const struct throttle_limits *l, unsigned i, uint64_t *ret);
MUST_USE int throttle_check(const struct throttle_limits *l, struct byre_err *err);

/* Members of an object change *l, all of them or an error; together they must be sound. */
MUST_USE int throttle_limits_take(const json_t *o, struct throttle_limits *l, struct byre_err *err);
/* What an object of the type throttle-group says: "limits": {...}, or "x-iops-total": 7 and its sisters; "id" and "qom-type" are passed over. */
MUST_USE int throttle_members(const json_t *o, struct throttle_limits *l, struct byre_err *err);

struct throttle_group;
MUST_USE int throttle_group_new(struct graph *g, const char *name, const struct throttle_limits *l, struct throttle_group **ret_t, struct byre_err *err);
/* Refused while a node uses it. */
MUST_USE int throttle_group_free(struct throttle_group *t, struct byre_err *err);
void throttle_groups_free(struct graph *g);      /* all of them; there are no nodes any more */
struct throttle_group *throttle_group_find(struct graph *g, const char *name);
struct throttle_group *throttle_group_next(struct graph *g, struct throttle_group *prev);      /* iterates; prev NULL: the first */
const char *throttle_group_name(const struct throttle_group *t);
/* It is an object of the user, and stays when it has no members. */
void throttle_group_keep(struct throttle_group *t);
bool throttle_group_kept(const struct throttle_group *t);
/* Members, holders, requests that wait: it cannot be freed. */
bool throttle_group_in_use(const struct throttle_group *t);
/* It stays over suspensions; home loop. Let go by the last one, it ends if it has no members and is no object of the user. */
void throttle_group_hold(struct throttle_group *t);
void throttle_group_let(struct throttle_group *t);
/* The same from now on for those who wait already. */
void throttle_group_set(struct throttle_group *t, const struct throttle_limits *l);
void throttle_group_get(struct throttle_group *t, struct throttle_limits *ret);

/* A filter over `below` (NULL: over nothing yet) that is a member. */
MUST_USE int throttle_node_new(struct graph *g, struct graph_node *below, struct throttle_group *t, const char *node_name, struct graph_node **ret_n, struct byre_err *err);
/* Drained. It is a member of t from now on. */
void throttle_node_move(struct graph_node *n, struct throttle_group *t);
/* The group of a throttle node; NULL: it is none. */
struct throttle_group *throttle_of(const struct graph_node *n);

/* ---- the sums, for tests ---- */
struct throttle_bucket { struct throttle_limit limit; double level, burst; };
/* dt_ns have gone by, and `units` are wanted: how many ns until they may pass. They count at once: who comes later waits behind them. */
uint64_t throttle_take(struct throttle_bucket *b, uint64_t dt_ns, uint64_t units);

#endif
