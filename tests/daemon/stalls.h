/* SPDX-License-Identifier: MIT
 *
 * stalls.h: a call that stands still as long as a file is there. For copy_stalls.c and folder_stalls.c.
 *
 * Concurrency  Any threads.
 */
#ifndef STALLS_H
#define STALLS_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Each that stands still adds a byte to path.in before. */
static void tell(const char *path)
{
    char name[4096];
    snprintf(name, sizeof name, "%s.in", path);
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1)
        abort();
    close(fd);
}

/* path NULL: it goes on. */
static void stand_still(const char *path)
{
    if (!path || access(path, F_OK))
        return;
    tell(path);
    while (!access(path, F_OK))
        usleep(10000);
}

#endif
