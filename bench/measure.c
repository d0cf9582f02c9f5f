/* SPDX-License-Identifier: MIT
 *
 * measure.c: runs a command and says what it cost.   usage: measure FILE COMMAND...
 *
 * Purpose      A parent that is small: the peak memory that the kernel reports of a process is never below that of the one which started
 *              it, and the benchmark itself is a Python program of some size. FILE gets one line: status, wall seconds, CPU seconds,
 *              peak KiB.
 * Owns         nothing
 * Invariants   none
 * Order        none
 * Concurrency  one thread
 * Failure      exit code 125: the command could not be started, or FILE not be written
 * Tests        tests/bench/harness_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct rusage u;
    int status;
    if (argc < 3)
        return 125;
    double begin = now();
    pid_t pid = fork();
    if (pid == 0) {
        execvp(argv[2], argv + 2);
        _exit(125);
    }
    if (pid < 0 || wait4(pid, &status, 0, &u) != pid)
        return 125;
    double wall = now() - begin;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    FILE *f = fopen(argv[1], "w");
    if (!f)
        return 125;
    fprintf(f, "%d %.6f %.6f %ld\n", code, wall, seconds(u.ru_utime) + seconds(u.ru_stime), u.ru_maxrss);
    if (fclose(f))
        return 125;
    return code;
}
