/* SPDX-License-Identifier: MIT
 *
 * unix_path.h: the paths of unix sockets that somebody listened on.
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

/* Is there a socket at the path that nobody listens on any more? Looks for up to a second: a killed process may listen a moment longer
 * than it lives, since the kernel takes its rings down in the background. Blocks: for the pool of blocking calls. */
bool unix_path_is_stale(const struct sockaddr_un *sa);

#endif
