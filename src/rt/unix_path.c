/* SPDX-License-Identifier: MIT
 *
 * unix_path.c: unix sockets.
 *
 * Purpose      Names as the kernel takes them; tells a socket that was forgotten from one in use; keeps descriptors out.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any thread that may block
 * Failure      what cannot be found out is in use
 * Tests        tests/nbd/nbd_listen_test.py, tests/cli/serve_test.py, tests/daemon/end_test.py
 */
#include "rt/unix_path.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if !defined(SO_PASSRIGHTS) && !defined(__sparc__) && !defined(__hppa__)       /* those have other numbers */
#define SO_PASSRIGHTS 83
#endif
#define TRIES 20
#define PAUSE_NS 50000000

bool unix_addr_fill(const struct unix_addr *a, struct sockaddr_un *ret, socklen_t *ret_len)
{
    size_t n = strlen(a->path);
    if (!n || n > UNIX_PATH_MAX)
        return false;
    *ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
    memcpy(ret->sun_path + a->abstract, a->path, n);
    *ret_len = a->abstract && !a->padded ? (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n) : (socklen_t)sizeof *ret;
    return true;
}

static bool refuses_clients(const struct sockaddr_un *sa)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    bool refused = connect(fd, (const struct sockaddr *)sa, sizeof *sa) && errno == ECONNREFUSED;
    (void)close(fd);
    return refused;
}

static bool is_stale(const struct sockaddr_un *sa)
{
    struct stat st;
    if (lstat(sa->sun_path, &st) || !S_ISSOCK(st.st_mode))
        return false;
    bool refused = refuses_clients(sa);
    for (int i = 0; !refused && i < TRIES; i++) {
        (void)nanosleep(&(struct timespec){ 0, PAUSE_NS }, NULL);
        refused = refuses_clients(sa);
    }
    return refused;
}

int unix_bind(int fd, const struct sockaddr_un *sa, socklen_t len, bool abstract)
{
    if (bind(fd, (const struct sockaddr *)sa, len) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -errno;
    if (abstract || !is_stale(sa))
        return -EADDRINUSE;
    if (unlink(sa->sun_path) && errno != ENOENT)
        return -errno;
    return bind(fd, (const struct sockaddr *)sa, len) ? -errno : 0;
}

char *unix_real_path(const struct sockaddr_un *sa)
{
    char *real = realpath(sa->sun_path, NULL);
    return real || errno == ENOMEM ? real : strdup(sa->sun_path);
}

void unix_refuse_descriptors(int fd)
{
#ifdef SO_PASSRIGHTS
    int off = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off);     /* an older kernel has no such thing */
#else
    (void)fd;
#endif
}
