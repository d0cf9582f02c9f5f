/* SPDX-License-Identifier: MIT
 *
 * file_holder.c: who holds a lock on a file, as far as the kernel tells us.
 *
 * Purpose      A refused lock should name the program to look at. Locks of open file descriptions carry no process id
 *              (F_OFD_GETLK and /proc/locks say -1), but /proc/PID/fdinfo/FD lists the locks of each open file.
 * Owns         Nothing.
 * Invariants   I1  Only descriptors that are open on the file itself (device and inode) are looked into.
 *              I2  At most PROCESSES_MAX processes and FDS_MAX descriptors are visited.
 * Order        Nothing.
 * Concurrency  Worker threads only. The answer may be old when it is read: it is for people.
 * Failure      "another process": the holder belongs to somebody else, lives in another namespace, or is gone.
 * Tests        file_lock_test.c
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stor/file_priv.h"

enum { PROCESSES_MAX = 65536, FDS_MAX = 262144 };

struct search {
    const struct stat *st;
    int own_fd;
    uint64_t byte;
    unsigned fds_left;
};

static long number(const char *digits)
{
    return strtol(digits, NULL, 10);
}

/* "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:123 201 201": does the line cover the byte? */
static bool line_covers(const char *line, uint64_t byte)
{
    char kind[16], first[24], last[24];
    if (strncmp(line, "lock:", 5) || sscanf(line + 5, "%*s %15s %*s %*s %*s %*s %23s %23s", kind, first, last) != 3)
        return false;
    if (strcmp(kind, "OFDLCK") && strcmp(kind, "POSIX"))
        return false;
    return strtoull(first, NULL, 10) <= byte && (!strcmp(last, "EOF") || byte <= strtoull(last, NULL, 10));
}

static bool fd_holds(const char *pid, const char *fd, uint64_t byte)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%.20s/fdinfo/%.20s", pid, fd);
    FILE *in = fopen(path, "re");
    bool found = false;
    if (!in)
        return false;
    while (!found && fgets(line, sizeof line, in))
        found = line_covers(line, byte);
    fclose(in);
    return found;
}

static bool process_holds(const char *pid, struct search *q)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    bool own = number(pid) == getpid(), found = false;
    struct dirent *e;
    while (!found && q->fds_left && (e = readdir(dir))) {
        struct stat st;
        if (!isdigit((unsigned char)e->d_name[0]))
            continue;
        q->fds_left--;
        if (own && number(e->d_name) == q->own_fd)
            continue;
        if (fstatat(dirfd(dir), e->d_name, &st, 0) < 0 || st.st_dev != q->st->st_dev || st.st_ino != q->st->st_ino)
            continue;
        found = fd_holds(pid, e->d_name, q->byte);
    }
    closedir(dir);
    return found;
}

/* ---- the control socket of a server: named on its command line, or "control" in its private folder ---- */

enum { CONTROL_MAX = 108, WORDS_MAX = 8192 };

/* The value of --control among the words of a command line. */
static const char *control_word(const char *words, size_t len)
{
    for (const char *w = words; w < words + len; w += strlen(w) + 1) {
        const char *next = w + strlen(w) + 1;
        if (strncmp(w, "--control=", 10) == 0)
            return w + 10;
        if (strcmp(w, "--control") == 0 && next < words + len)
            return next;
    }
    return NULL;
}

static bool control_of_words(const char *pid, char out[CONTROL_MAX])
{
    char path[64], words[WORDS_MAX], cwd[CONTROL_MAX];
    snprintf(path, sizeof path, "/proc/%.20s/cmdline", pid);
    FILE *in = fopen(path, "re");
    size_t len = in ? fread(words, 1, sizeof words - 1, in) : 0;
    if (in)
        fclose(in);
    words[len] = 0;
    const char *w = control_word(words, len);
    if (!w)
        return false;
    if (strncmp(w, "unix:", 5) == 0)
        w += 5;
    snprintf(path, sizeof path, "/proc/%.20s/cwd", pid);
    ssize_t n = *w == '/' ? 0 : readlink(path, cwd, sizeof cwd - 1);
    if (n < 0)
        return false;
    cwd[n] = 0;
    return snprintf(out, CONTROL_MAX, "%s%s%s", cwd, n ? "/" : "", w) < CONTROL_MAX;
}

/* Has the process a descriptor of this socket? */
static bool has_socket(const char *pid, const char *inode)
{
    char path[64], want[48], link[48];
    snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    snprintf(want, sizeof want, "socket:[%s]", inode);
    DIR *dir = opendir(path);
    bool found = false;
    struct dirent *e;
    for (unsigned i = 0; dir && !found && i < 4096 && (e = readdir(dir)); i++) {
        ssize_t n = readlinkat(dirfd(dir), e->d_name, link, sizeof link - 1);
        if (n > 0) {
            link[n] = 0;
            found = strcmp(link, want) == 0;
        }
    }
    if (dir)
        closedir(dir);
    return found;
}

/* A socket that somebody listens on is "... 00010000 ... INODE PATH" in the list of the network namespace. */
static bool control_of_sockets(const char *pid, char out[CONTROL_MAX])
{
    char line[512], flags[16], inode[24], path[CONTROL_MAX];
    snprintf(line, sizeof line, "/proc/%.20s/net/unix", pid);
    FILE *in = fopen(line, "re");
    bool found = false;
    while (in && !found && fgets(line, sizeof line, in)) {
        if (sscanf(line, "%*s %*s %*s %15s %*s %*s %23s %107s", flags, inode, path) != 3 || strcmp(flags, "00010000"))
            continue;
        const char *base = strrchr(path, '/');
        found = base && strcmp(base, "/control") == 0 && has_socket(pid, inode);
    }
    if (in)
        fclose(in);
    if (found)
        snprintf(out, CONTROL_MAX, "%s", path);
    return found;
}

static bool find_control(const char *pid, char out[CONTROL_MAX])
{
    return control_of_words(pid, out) || control_of_sockets(pid, out);
}

static void describe(const char *pid, char *buf, size_t size)
{
    char path[64], name[64] = "";
    snprintf(path, sizeof path, "/proc/%.20s/comm", pid);
    FILE *in = fopen(path, "re");
    if (in && fgets(name, sizeof name, in))
        name[strcspn(name, "\n")] = 0;
    if (in)
        fclose(in);
    bool own = number(pid) == getpid();
    int n = snprintf(buf, size, "process %.20s (%s)%s", pid, name[0] ? name : "?", own ? ", which is this one" : "");
    char control[CONTROL_MAX];
    if (!own && strcmp(name, "byre") == 0 && find_control(pid, control) && n > 0 && (size_t)n < size)
        snprintf(buf + n, size - (size_t)n, ", control socket %s", control);
}

bool file_holder(const struct stat *st, int own_fd, uint64_t byte, char *buf, size_t size)
{
    struct search q = { st, own_fd, byte, FDS_MAX };
    bool found = false;
    snprintf(buf, size, "another process");
    DIR *proc = opendir("/proc");
    if (!proc)
        return false;
    struct dirent *e;
    for (unsigned n = 0; !found && n < PROCESSES_MAX && q.fds_left && (e = readdir(proc));) {
        if (!isdigit((unsigned char)e->d_name[0]))
            continue;
        n++;
        found = process_holds(e->d_name, &q);
        if (found)
            describe(e->d_name, buf, size);
    }
    closedir(proc);
    return found;
}
