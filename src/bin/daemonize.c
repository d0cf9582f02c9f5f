/* SPDX-License-Identifier: MIT
 *
 * daemonize.c: going into the background, and the file that says as whom.
 *
 * Purpose      --daemonize, --fork, --pidfile.
 * Owns         the pipe to the waiting parent; the pidfile and its lock
 * Invariants   I1 the parent succeeds only when the child said that it is ready
 *              I2 a pidfile is written under a lock that lasts as long as the process: two of them cannot share it
 *              I3 a pidfile that was removed meanwhile, and written anew, is another process's: it stays
 * Concurrency  main thread, before others are started (daemonize_begin)
 * Failure      told on standard error, which stays open until the child is ready
 * Tests        tests/daemon
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bin/server.h"

/* Does not return: the child's word is our exit code. */
static void wait_for_child(int fd, pid_t child)
{
    char said = 1;
    ssize_t n;
    do
        n = read(fd, &said, 1);
    while (n < 0 && errno == EINTR);
    if (n != 1)
        (void)waitpid(child, NULL, 0);
    _exit(n == 1 && !said ? 0 : 1);
}

bool daemonize_begin(struct daemonizer *d, struct run *r)
{
    int fds[2];
    fflush(NULL);
    if (pipe2(fds, O_CLOEXEC)) {
        run_fail(r, "no descriptor left: %s", strerror(errno));
        return false;
    }
    pid_t child = fork();
    if (child < 0) {
        run_fail(r, "cannot go into the background: %s", strerror(errno));
        close(fds[0]);
        close(fds[1]);
        return false;
    }
    if (child) {
        close(fds[1]);
        wait_for_child(fds[0], child);
    }
    close(fds[0]);
    d->fd = fds[1];
    (void)setsid();                      /* fails only for a leader, which a new process is not */
    return true;
}

void daemonize_ready(struct daemonizer *d)
{
    char good = 0;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    fflush(NULL);
    if (!d->keep_folder)
        (void)!chdir("/");
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        (void)!dup2(null, fd);
    if (null > 2)
        close(null);
    (void)!write(d->fd, &good, 1);
    close(d->fd);
}

/* ---- pidfile ---- */
static int lock_whole(int fd)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_SETLK, &l);
}

/* The file that we locked may have been removed by the one that held it. */
static bool is_still_there(int fd, const char *path)
{
    struct stat a, b;
    return !fstat(fd, &a) && !stat(path, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int open_locked(struct run *r, const char *path)
{
    for (;;) {
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0) {
            run_fail(r, "cannot open the pidfile '%s': %s", path, strerror(errno));
            return -1;
        }
        if (lock_whole(fd)) {
            run_fail(r, "the pidfile '%s' is locked: the program that wrote it still runs", path);
            close(fd);
            return -1;
        }
        if (is_still_there(fd, path))
            return fd;
        close(fd);
    }
}

int pidfile_write(struct pidfile *p, struct run *r, const char *path)
{
    char text[24];
    int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
    int fd = open_locked(r, path);
    if (fd < 0)
        return 1;
    if (ftruncate(fd, 0) || write(fd, text, (size_t)n) != n) {
        run_fail(r, "cannot write the pidfile '%s': %s", path, strerror(errno));
        (void)unlink(path);
        close(fd);
        return 1;
    }
    p->path = realpath(path, NULL);
    p->fd = fd;
    server_remember_path(p->path);
    return 0;
}

void pidfile_remove(struct pidfile *p)
{
    if (!p->path)
        return;
    if (is_still_there(p->fd, p->path))      /* I3 */
        (void)unlink(p->path);
    close(p->fd);
    free(p->path);
    p->path = NULL;
}
