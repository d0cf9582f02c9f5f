/* SPDX-License-Identifier: MIT
 *
 * passing.h: descriptors that clients send with their commands (SCM_RIGHTS). Private to ctl/.
 */
#ifndef CTL_PASSING_H
#define CTL_PASSING_H

#include <sys/types.h>

#include "base/err.h"
#include "base/list.h"
#include "rt/co.h"

/* What came in one message, owned. */
#define CTL_OFFER_MAX 16u                /* descriptors in a message; the kernel closes what is beyond */
#define CTL_NAMES_MAX 64u                /* descriptors with names that a client has */
#define CTL_NAME_BYTES_MAX 255u
struct ctl_offer { int fds[CTL_OFFER_MAX]; unsigned count; bool lost; /* more came than were taken */ };

struct ctl_call;
struct ctl_client;

/* Bytes of a socket, as rt_recv; descriptors that came with them take the place of those in *offer, which are closed. */
MUST_USE int64_t ctl_receive(struct co *co, int fd, void *data, size_t len, struct ctl_offer *offer);
/* *to becomes what *from is, if that is anything: what it was before is closed. */
void ctl_offer_move(struct ctl_offer *to, struct ctl_offer *from);
void ctl_offer_close(struct ctl_offer *o);
/* The one descriptor that the client offers; the caller's from now on. */
MUST_USE int ctl_take_offer(struct ctl_call *call, int *ret_fd);
/* The one that the client has named so, which has the name no more; without a client (the command line): the process's own of that number. The caller's
 * from now on. what: the argument, for the text. */
MUST_USE int ctl_take_socket(struct ctl_call *call, const char *what, const char *name, int *ret_fd);
void ctl_names_free(struct ctl_client *cl);

#endif
