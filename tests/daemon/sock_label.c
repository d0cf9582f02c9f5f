/* SPDX-License-Identifier: MIT
 *
 * sock_label.c: a library to preload: what a thread asks of the kernel about the labels of its sockets goes to a file, where it succeeds.
 *
 *     SOCK_LABEL=path      what is written to /proc/thread-self/attr/sockcreate is added to path; each unix socket that is made adds "S"
 *
 * Purpose      A system with SELinux, as far as a program that gives its socket a label can tell.
 * Owns         Nothing.
 * Invariants   Without SOCK_LABEL nothing changes.
 * Order        None.
 * Concurrency  Any threads: the file is opened for appending.
 * Failure      A symbol that the C library lacks ends the program.
 * Tests        nbd_test.py
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int open_fn(const char *path, int flags, ...);
typedef int socket_fn(int family, int type, int protocol);

static void *next(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f)
        abort();
    return f;
}

int open64(const char *path, int flags, ...)
{
    va_list ap;
    const char *file = getenv("SOCK_LABEL");
    va_start(ap, flags);
    unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, unsigned) : 0;
    va_end(ap);
    if (file && !strcmp(path, "/proc/thread-self/attr/sockcreate"))
        return ((open_fn *)next("open64"))(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return ((open_fn *)next("open64"))(path, flags, mode);
}

int socket(int family, int type, int protocol)
{
    const char *file = getenv("SOCK_LABEL");
    int fd = file && family == AF_UNIX ? ((open_fn *)next("open64"))(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd >= 0 && write(fd, "S", 1) != 1)
        abort();
    if (fd >= 0)
        close(fd);
    return ((socket_fn *)next("socket"))(family, type, protocol);
}
