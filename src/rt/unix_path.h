/* SPDX-License-Identifier: MIT
 *
 * unix_path.h: the paths of unix sockets that somebody listened on.
 */
#ifndef RT_UNIX_PATH_H
#define RT_UNIX_PATH_H

#include <stdbool.h>
#include <sys/un.h>

/* Is there a socket at the path that nobody listens on any more? Looks for up to a second: a killed process may listen a moment longer
 * than it lives, since the kernel takes its rings down in the background. Blocks: for the pool of blocking calls. */
bool unix_path_is_stale(const struct sockaddr_un *sa);

#endif
