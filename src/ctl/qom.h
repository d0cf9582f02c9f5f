/* SPDX-License-Identifier: MIT
 *
 * qom.h: objects that are the graph's: see cmd_qom.c.
 */
#ifndef CTL_QOM_H
#define CTL_QOM_H

#include "ctl/ctl_priv.h"

/* cmd_object.c: the kinds of objects that object-add makes. */
extern const struct ctl_shape ctl_object_types;
/* What it takes for one of them, beside type and id; NULL: there is no such kind. */
const struct ctl_arg *ctl_object_rows(const char *type);

struct throttle_group;
struct throttle_group *ctl_throttle(const struct ctl *c, const char *id);       /* NULL: there is none */
/* Makes the throttle group of call->arguments. */
MUST_USE int ctl_throttle_add(struct ctl_call *call);
/* 0: it is gone; 1: there is none of that id. */
MUST_USE int ctl_throttle_del(struct ctl_call *call, const char *id);

/* As these for the type pr-manager-helper (cmd_pr.c). */
struct pr_manager;
struct pr_manager *ctl_pr(const struct ctl *c, const char *id);          /* NULL: there is none */
MUST_USE int ctl_pr_add(struct co *co, struct ctl_call *call);
MUST_USE int ctl_pr_del(struct ctl_call *call, const char *id);
MUST_USE int ctl_pr_get(struct ctl_call *call, const struct pr_manager *m, const char *property);

/* As these for the type iothread (cmd_iothread.c). */
struct iothread;
struct iothread *ctl_iothread(const struct ctl *c, const char *id);      /* NULL: there is none */
MUST_USE int ctl_iothread_add(struct co *co, struct ctl_call *call);
MUST_USE int ctl_iothread_del(struct ctl_call *call, const char *id);
MUST_USE int ctl_iothread_get(struct ctl_call *call, const struct iothread *io, const char *property);
MUST_USE int ctl_iothread_set(struct ctl_call *call, struct iothread *io, const char *property, const json_t *value);

#endif
