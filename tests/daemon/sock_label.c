/* SPDX-License-Identifier: MIT
 *
 * sock_label.c: a library to preload: what a thread asks of the kernel about the labels of its sockets goes to a file, where it succeeds.
 *
 *     SOCK_LABEL=path      what is written to /proc/thread-self/attr/sockcreate is added to path; each unix socket that is made adds "S", and each that
 *                          has a path when the program ends "L"
 *     SOCK_LABEL_FAILS=    taking: the label cannot be taken back; listening: no unix socket can listen
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
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef int open_fn(const char *path, int flags, ...);
typedef int socket_fn(int family, int type, int protocol);
typedef int listen_fn(int fd, int backlog);

static bool fails(const char *what)
{
    const char *env = getenv("SOCK_LABEL_FAILS");
    return env && !strcmp(env, what);
}

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
    static _Atomic bool given;
    bool label = file && !strcmp(path, "/proc/thread-self/attr/sockcreate");
    if (label && atomic_exchange(&given, true) && fails("taking")) {
        errno = EACCES;
        return -1;
    }
    if (label)
        return ((open_fn *)next("open64"))(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return ((open_fn *)next("open64"))(path, flags, mode);
}

static void add(const char *file, const char *letter)
{
    int fd = ((open_fn *)next("open64"))(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, letter, 1) != 1)
        abort();
    close(fd);
}

int socket(int family, int type, int protocol)
{
    const char *file = getenv("SOCK_LABEL");
    if (file && family == AF_UNIX)
        add(file, "S");
    return ((socket_fn *)next("socket"))(family, type, protocol);
}

static bool has_path(int fd)
{
    struct sockaddr_un sa = { 0 };
    socklen_t len = sizeof sa;
    return !getsockname(fd, (struct sockaddr *)&sa, &len) && sa.sun_family == AF_UNIX && sa.sun_path[0];
}

int listen(int fd, int backlog)
{
    if (has_path(fd) && fails("listening")) {
        errno = ENOBUFS;
        return -1;
    }
    return ((listen_fn *)next("listen"))(fd, backlog);
}

__attribute__((destructor)) static void at_end(void)
{
    const char *file = getenv("SOCK_LABEL");
    for (int fd = 0; file && fd < 1024; fd++)
        if (has_path(fd))
            add(file, "L");
}
