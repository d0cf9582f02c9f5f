/* SPDX-License-Identifier: MIT
 *
 * unix_path.h: unix sockets: their paths, and what may come through them.
 */
#ifndef RT_UNIX_PATH_H
#define RT_UNIX_PATH_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A path, or (abstract) a name that is in no folder and goes with its socket. padded: such a name is filled up with zeros, as some programs have it.
 * label: the security label (SELinux) of a socket that is made to listen there; NULL: the usual one. */
struct unix_addr { const char *path; bool abstract, padded; const char *label; };
#define UNIX_PATH_MAX 107u
/* false: the path or name has no bytes, or more than UNIX_PATH_MAX. */
bool unix_addr_fill(const struct unix_addr *a, struct sockaddr_un *ret, socklen_t *ret_len);

/* No descriptors can be sent to this socket from now on, nor to those that it will accept: who tries gets an error. One that nobody receives is closed by
 * the kernel when the bytes that it came with are read, or the socket is closed, in the thread which does that; so a peer could stop a loop with a
 * descriptor whose close takes long (closer.h). Linux 6.16; nothing happens before that, and where the socket is none of unix. Does not block. */
void unix_refuse_descriptors(int fd);

/* Binds fd; a socket at the path that nobody listens on any more is removed before. Looks for up to a second whether there is one: a killed process may
 * listen a moment longer than it lives, since the kernel takes its rings down in the background. 0; -EADDRINUSE: something is there; another -errno.
 * Blocks, as the next one: for the pool of blocking calls. */
int unix_bind(int fd, const struct sockaddr_un *sa, socklen_t len, bool abstract);
/* The path of a socket that was just made, for whoever is in another folder later; owned by the caller. As it is where a folder further up is one that
 * nobody may look into: that keeps nobody from listening. NULL: no memory. */
char *unix_real_path(const struct sockaddr_un *sa);

#endif
