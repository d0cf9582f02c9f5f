/* SPDX-License-Identifier: MIT
 *
 * passed.h: descriptors that clients send with their commands (SCM_RIGHTS). Private to ctl/.
 */
#ifndef CTL_PASSED_H
#define CTL_PASSED_H

#include <sys/socket.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/list.h"
#include "rt/co.h"

/* What came in one message, owned. */
#define CTL_OFFER_MAX 16u                /* descriptors in a message; what is beyond is closed */
#define CTL_MESSAGE_FDS_MAX 253u         /* the kernel lets nobody send more at once */
#define CTL_NAMES_MAX 64u                /* descriptors with names that a client has */
#define CTL_NAME_BYTES_MAX 255u
struct ctl_offer { int fds[CTL_OFFER_MAX]; unsigned count; bool lost; /* more came than were taken */ };
/* Room to receive a message. */
struct ctl_inbox {
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(CTL_MESSAGE_FDS_MAX * sizeof(int))];
    int surplus[CMSG_SPACE(CTL_MESSAGE_FDS_MAX * sizeof(int)) / sizeof(int)];
};

struct ctl_call;
struct ctl_client;

/* Closes a connection that is nobody's, whatever lies in it. The peer sees its end at once. */
void ctl_drop_socket(struct rt_loop *home, int fd);
/* Bytes of its socket, as rt_recv; descriptors that came with them take the place of those that arrived before, which are closed. */
MUST_USE int64_t ctl_receive(struct co *co, struct ctl_client *cl, void *data, size_t len);
/* *to becomes what *from is, if that is anything: what it was before is closed. Suspends only to close. */
void ctl_offer_move(struct co *co, struct ctl_offer *to, struct ctl_offer *from);
void ctl_offer_close(struct co *co, struct ctl_offer *o);
/* The one descriptor that the client offers; the caller's from now on. */
MUST_USE int ctl_take_offer(struct co *co, struct ctl_call *call, int *ret_fd);
/* The socket that the client has named so, which has the name no more; without a client (the command line): the process's own of that number. The caller's
 * from now on: closing it waits for nobody. what: the argument, for the text. */
MUST_USE int ctl_take_socket(struct co *co, struct ctl_call *call, const char *what, const char *name, int *ret_fd);
/* Closes all that the client has sent and nobody has taken, and its own socket, in which more of that may lie; the peer sees its end at once. */
void ctl_client_descriptors_end(struct co *co, struct ctl_client *cl);

#endif
