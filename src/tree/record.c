/* SPDX-License-Identifier: MIT
 *
 * record.c: which overlays does a base have, wherever they lie?
 *
 * Purpose      A text file beside the base, or one that the user names for all bases. A line: the word child, the file system that holds the
 *              overlay (16 hexadecimal digits), its path, the base's path; bytes that would end a word are written %XX.
 * Owns         Nothing between calls.
 * Invariants   T3 of tree.h. R1 A line counts only when it is whole. R2 Who changes the file holds its lock, and the file still has its name.
 *              R3 Nothing is written to a file that is no record.
 * Order        A line is durable before tree_record returns 0. Lines are taken out by a new file that takes the place of the old one
 *              when it is durable. A crash leaves a part of a line at most, which the next one to be added sets apart.
 * Concurrency  Any thread that may block; other processes by flock.
 * Failure      The file is as it was, or has one line more.
 * Tests        tree_test.c
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tree/tree_priv.h"

#define RECORD_BYTES_MAX (64u << 20)
#define FS_DIGITS 16
#define LOCK_TRIES 200
#define LOCK_PAUSE_NS 10000000
#define STALE_MAX 16                     /* more lines that count for nothing than this, and than others: they are taken out */

static const char heading[] = "# Overlays of disk images. Kept by byre: see byre-tree(1).\n";

/* ---- words ---- */

static char *escape(const char *s)
{
    static const char digits[] = "0123456789ABCDEF";
    char *to = malloc(strlen(s) * 3 + 1), *at = to;
    for (; to && *s; s++)
        if ((unsigned char)*s <= ' ' || *s == '%' || *s == 0x7f) {
            *at++ = '%';
            *at++ = digits[(unsigned char)*s >> 4];
            *at++ = digits[*s & 15];
        } else {
            *at++ = *s;
        }
    if (to)
        *at = 0;
    return to;
}

static int hex_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place. false: it is no word of ours. */
static bool unescape(char *s)
{
    char *to = s;
    for (; *s; s++) {
        if (*s != '%') {
            *to++ = *s;
            continue;
        }
        int a = hex_of(s[1]), b = a < 0 ? -1 : hex_of(s[2]);
        if (b < 0 || !(a << 4 | b))
            return false;
        *to++ = (char)(a << 4 | b);
        s += 2;
    }
    *to = 0;
    return true;
}

static uint64_t fs_of(const char *path)
{
    struct statfs st;
    uint64_t id = 0;
    if (statfs(path, &st))
        return 0;
    memcpy(&id, &st.f_fsid, sizeof id < sizeof st.f_fsid ? sizeof id : sizeof st.f_fsid);
    return id;
}

bool tree_is_gone(const char *path, uint64_t fs)
{
    struct stat st;
    AUTOFREE char *dir = strdup(path);
    if (!dir || !stat(path, &st) || (errno != ENOENT && errno != ENOTDIR))
        return false;
    for (char *slash; (slash = strrchr(dir, '/'));) {
        slash[slash == dir] = 0;
        if (!stat(dir, &st))
            return fs_of(dir) == fs;
        if (!dir[1])
            break;
    }
    return false;
}

/* ---- the file ---- */

static char *name_of_record(const struct tree_opts *o, const char *base)
{
    if (o->registry)
        return strdup(o->registry);
    AUTOFREE char *real = realpath(base, NULL);
    char *s = NULL;
    return !real || asprintf(&s, "%s" TREE_RECORD_SUFFIX, real) < 0 ? NULL : s;
}

/* All of it, with a 0 behind. NULL: errno. */
static char *read_all(int fd, size_t *ret_len)
{
    struct stat st;
    if (fstat(fd, &st))
        return NULL;
    if (!S_ISREG(st.st_mode) || st.st_size > RECORD_BYTES_MAX) {
        errno = S_ISREG(st.st_mode) ? EFBIG : EINVAL;
        return NULL;
    }
    size_t len = (size_t)st.st_size, done = 0;
    char *buf = malloc(len + 1);
    while (buf && done < len) {
        ssize_t n = pread(fd, buf + done, len - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            free(buf);
            return NULL;
        }
        if (!n)
            break;
        done += (size_t)n;
    }
    if (buf) {
        buf[done] = 0;
        *ret_len = done;
    }
    return buf;
}

struct line { const char *overlay, *base; uint64_t fs; };

/* The next line that says something, from *at on; it is cut into words. false: there is none. */
static bool next_line(char **at, char *end, struct line *ret)
{
    while (*at < end) {
        char *start = *at, *nl = memchr(start, '\n', (size_t)(end - start)), *save, *stop;
        if (!nl)
            return false;                        /* R1 */
        *at = nl + 1;
        *nl = 0;
        if (strlen(start) != (size_t)(nl - start))
            continue;
        const char *word = strtok_r(start, " ", &save), *fs = word ? strtok_r(NULL, " ", &save) : NULL;
        char *overlay = fs ? strtok_r(NULL, " ", &save) : NULL, *base = overlay ? strtok_r(NULL, " ", &save) : NULL;
        if (!base || strcmp(word, "child") || strlen(fs) != FS_DIGITS || !unescape(overlay) || !unescape(base) || overlay[0] != '/')
            continue;
        *ret = (struct line){ overlay, base, strtoull(fs, &stop, 16) };
        if (!*stop)
            return true;
    }
    return false;
}

int tree_record_each(const struct tree_opts *o, const char *base, tree_record_fn *fn, void *arg, struct byre_err *err)
{
    AUTOFREE char *path = name_of_record(o, base), *buf = NULL;
    size_t len = 0;
    if (!path)
        return errno == ENOMEM ? byre_fail(err, NOMEM, "no memory for a record of overlays") : 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG ? 0 :
               byre_fail_code(err, SYSTEM, -errno, "%s: the record of overlays cannot be read: %s", path, strerror(errno));
    buf = read_all(fd, &len);
    int e = errno, r = 0;
    close(fd);
    if (!buf)
        return byre_fail_code(err, SYSTEM, -e, "%s: the record of overlays cannot be read: %s", path, strerror(e));
    struct line l;
    for (char *at = buf; !r && next_line(&at, buf + len, &l);)
        r = fn(arg, l.overlay, l.fs);
    return r;
}

/* ---- adding ---- */

static int lock(int fd)
{
    const struct timespec pause = { 0, LOCK_PAUSE_NS };
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (!flock(fd, LOCK_EX | LOCK_NB))
            return 0;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return -errno;
        nanosleep(&pause, NULL);
    }
    return -EBUSY;
}

/* Opens and locks the file that has the name (R2). */
static int open_locked(const char *path)
{
    for (;;) {
        struct stat mine, named;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0644);
        if (fd < 0)
            return -errno;
        int r = fstat(fd, &mine) ? -errno : S_ISREG(mine.st_mode) ? lock(fd) : -EINVAL;
        if (!r && !stat(path, &named) && named.st_dev == mine.st_dev && named.st_ino == mine.st_ino)
            return fd;
        close(fd);
        if (r)
            return r;
    }
}

static int write_all(int fd, const char *buf, size_t len)
{
    while (len) {
        ssize_t n = write(fd, buf, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        buf += n;
        len -= (size_t)n;
    }
    return 0;
}

static int sync_dir(const char *path)
{
    AUTOFREE char *dir = tree_dir_of(path);
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0)
        return dir ? -errno : -ENOMEM;
    int r = fsync(fd) ? -errno : 0;
    close(fd);
    return r;
}

struct adding { const char *path, *overlay, *base; char *line; int fd; };

/* What does not begin as ours do is somebody's file, perhaps an image, when the registry was named wrongly (R3). */
static bool is_record(const char *buf, size_t len) { return !len || buf[0] == '#' || buf[0] == '\n' || !strncmp(buf, "child ", 6); }

/* Behind what is there. */
static int append(const struct adding *a, const char *old, size_t old_len)
{
    AUTOFREE char *text = NULL;
    const char *first = !old_len ? heading : old[old_len - 1] == '\n' ? "" : "\n";
    int n = asprintf(&text, "%s%s", first, a->line);
    if (n < 0)
        return -ENOMEM;
    int r = lseek(a->fd, 0, SEEK_END) < 0 ? -errno : write_all(a->fd, text, (size_t)n);
    if (!r && fdatasync(a->fd))
        r = -errno;
    if (r)
        return ftruncate(a->fd, (off_t)old_len) ? -EIO : r;
    return old_len ? 0 : sync_dir(a->path);
}

/* A new file with the lines of `live` and ours. */
static int replace(const struct adding *a, const char *live, size_t live_len)
{
    struct stat st;
    AUTOFREE char *temp = NULL;
    if (asprintf(&temp, "%s.XXXXXX", a->path) < 0)
        return -ENOMEM;
    int fd = mkostemp(temp, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fstat(a->fd, &st) || fchmod(fd, st.st_mode & 0777) ? -errno : 0;
    if (!r)
        r = write_all(fd, heading, strlen(heading));
    if (!r)
        r = write_all(fd, live, live_len);
    if (!r)
        r = write_all(fd, a->line, strlen(a->line));
    if (!r && (fsync(fd) || rename(temp, a->path)))
        r = -errno;
    close(fd);
    if (r) {
        (void)unlink(temp);
        return r;
    }
    return sync_dir(a->path);
}

static char *line_of(const char *overlay, const char *base, uint64_t fs)
{
    AUTOFREE char *o = escape(overlay), *b = escape(base);
    char *line = NULL;
    return !o || !b || asprintf(&line, "child %016" PRIx64 " %s %s\n", fs, o, b) < 0 ? NULL : line;
}

static int add_line(const struct adding *a)
{
    size_t len = 0, live_len = 0, live = 0, stale = 0;
    AUTOFREE char *old = read_all(a->fd, &len), *copy = NULL, *kept = NULL;
    if (!old)
        return -errno;
    if (!is_record(old, len))
        return -EINVAL;
    copy = malloc(len + 1);
    FILE *f = copy ? open_memstream(&kept, &live_len) : NULL;
    if (!f)
        return -ENOMEM;
    memcpy(copy, old, len + 1);
    bool there = false;
    struct line l;
    for (char *at = copy; next_line(&at, copy + len, &l);) {
        AUTOFREE char *again = NULL;
        there |= !strcmp(l.overlay, a->overlay) && !strcmp(l.base, a->base);
        if (tree_is_gone(l.overlay, l.fs)) {
            stale++;
            continue;
        }
        live++;
        again = line_of(l.overlay, l.base, l.fs);
        fputs(again ? again : "", f);
        if (!again) {
            fclose(f);
            return -ENOMEM;
        }
    }
    if (fclose(f))
        return -ENOMEM;
    if (there)                           /* who wrote it may have ended before it was durable */
        return fdatasync(a->fd) ? -errno : 0;
    return stale > STALE_MAX && stale > live ? replace(a, kept, live_len) : append(a, old, len);
}

int tree_record(const struct tree_opts *o, const char *base, const char *overlay, struct byre_err *err)
{
    struct stat st;
    AUTOFREE char *b = realpath(base, NULL), *c = realpath(overlay, NULL), *path = NULL, *line = NULL;
    if (!b || !c)
        return 0;                                /* one of them is no file of this machine */
    AUTOFREE char *bd = tree_dir_of(b), *cd = tree_dir_of(c);
    if (!bd || !cd)
        return byre_fail(err, NOMEM, "no memory for a record of overlays");
    if (!o->registry && !strcmp(bd, cd))
        return 0;
    if (!o->registry && !stat(b, &st) && S_ISBLK(st.st_mode))
        return byre_fail(err, NOT_SUPPORTED, "%s: is a block device, beside which no record of its overlay '%s' can be kept: name a registry", b, c);
    path = name_of_record(o, b);
    line = line_of(c, b, fs_of(c));
    if (!path || !line)
        return byre_fail(err, NOMEM, "no memory for a record of overlays");
    struct adding a = { .path = path, .overlay = c, .base = b, .line = line, .fd = open_locked(path) };
    int r = a.fd < 0 ? a.fd : add_line(&a);
    if (a.fd >= 0)
        close(a.fd);
    return r ? byre_fail_code(err, SYSTEM, r, "%s: it cannot be recorded that '%s' depends on '%s': %s", path, c, b,
                              r == -EINVAL ? "it is no record of overlays" : strerror(-r)) : 0;
}
