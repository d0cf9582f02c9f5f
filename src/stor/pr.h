/* SPDX-License-Identifier: MIT
 *
 * pr.h: managers of persistent reservations (FEATURES 3.021): objects by their ids, each with a helper that sends the SCSI commands PERSISTENT RESERVE IN
 * and OUT to devices, which this program may not be allowed to do. The helper listens at a unix socket and gets the device's descriptor with each command
 * (proto/pr/pr_codec.h). A file or device that is opened with one (stor_file_opts.pr_manager) keeps it until it is closed.
 *
 *     pr_set_new -> pr_add ... pr_run ... pr_remove -> pr_set_empty -> pr_set_free
 *
 * Concurrency  Home loop, the one on which pr_add was called, for all of it; but pr_put, which any loop may call.
 */
#ifndef STOR_PR_H
#define STOR_PR_H

#include <stdbool.h>

#include "base/err.h"
#include "proto/pr/pr_codec.h"
#include "rt/co.h"

#define PR_ADD_MS 5000u                    /* for a helper that takes its time, when a manager is made */

struct pr_manager;
struct pr_set;
struct rt_loop;
struct stor;

MUST_USE int pr_set_new(struct pr_set **ret_s);
/* `changed` is told of each connection that is made or lost, but not of the last one's end with its manager; must not suspend. NULL: nobody is told. */
void pr_set_watch(struct pr_set *s, void (*changed)(void *arg, const char *id, bool connected), void *arg);
/* Gives the connections up; nothing is asked of the managers any more. Does not wait. */
void pr_set_empty(struct pr_set *s, struct rt_loop *home);
void pr_set_free(struct pr_set *s);        /* nobody has one of its managers. NULL ok */

/* Connects to the helper, in limit_ms; without a connection there is no manager. The caller sees to it that nothing else has the id. Suspends. */
struct pr_new { const char *id, *path; unsigned limit_ms; };
MUST_USE int pr_add(struct co *co, struct pr_set *s, const struct pr_new *what, struct byre_err *err);
/* PERMISSION: a file is open with it, or a command goes on. It is one of s. */
MUST_USE int pr_remove(struct pr_set *s, struct pr_manager *m, struct byre_err *err);
struct pr_manager *pr_find(const struct pr_set *s, const char *id);                            /* NULL: none, or s is NULL */
struct pr_manager *pr_next(const struct pr_set *s, const struct pr_manager *prev);             /* iterates in the order in which they came; prev NULL: the first */
const char *pr_id(const struct pr_manager *m);
const char *pr_path(const struct pr_manager *m);
/* Looks whether the helper is still there, unless it is being asked something just now. One that has gone is told of. */
bool pr_look(struct pr_manager *m);

/* One user more, until pr_put. NOT_FOUND. */
MUST_USE int pr_get(const struct pr_set *s, const char *id, struct pr_manager **ret_m, struct byre_err *err);
void pr_put(struct pr_manager *m);         /* NULL ok */

/* data: head.len_bytes of them are there. */
struct pr_answer { struct prp_head head; uint8_t data[PRP_DATA_MAX]; };
/* fd: of the device; the helper gets it, and the caller may close it meanwhile. limit_ms: for all of it, what others ask before included. */
struct pr_call { struct prp_request request; int fd; unsigned limit_ms; };
/* Asks the helper; 0 when it has answered, whatever the device said (ret->head.status). Connects when there is no connection. Cancellable. Suspends.
 * CANCELLED; IO: no connection, or no answer in time; PROTOCOL. Whether the device has done what was asked is not known then. */
MUST_USE int pr_run(struct co *co, struct pr_manager *m, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err);

/* The manager that it was opened with; NULL: none. */
struct pr_manager *stor_pr_manager(const struct stor *s);
/* pr_run with that, and the store's own descriptor. s may be closed meanwhile. */
MUST_USE int stor_pr_run(struct co *co, struct stor *s, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err);

#endif
