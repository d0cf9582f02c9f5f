/* SPDX-License-Identifier: MIT
 *
 * file.c: opening, creating and closing files and block devices.
 *
 * Purpose      From a path to a store whose limits and traits are known.
 * Owns         The file descriptor; struct file_stor.
 * Invariants   I1  A file is emptied only with the lock held that lets us write and resize it.
 *              I2  Nothing but a regular file or a block device is opened, and no open waits for a peer (FIFO).
 *              I3  A descriptor that somebody passed (fdset.h) is used as it is: no path is looked at.
 * Order        A new file's directory entry is not made durable by opening it; whoever relies on it calls stor_file_keep_name.
 * Concurrency  Open runs on a worker thread, so that a slow file system does not stop a loop.
 * Failure      -errno and a text; nothing stays open. A file that this call created (exclusive) is removed again.
 * Tests        file_test.c
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "rt/loop.h"
#include "stor/fdset.h"
#include "stor/file_priv.h"
#include "stor/pr.h"

struct open_args {
    struct open_ask ask;
    struct file_stor *f;
    bool started;
};

static int fail_errno(struct byre_err *err, int e, const char *path, const char *what)
{
    switch (e) {
    case ENOENT: return byre_fail(err, NOT_FOUND, "%s: %s: no such file", path, what);
    case EEXIST: return byre_fail(err, EXISTS, "%s: %s: the file exists", path, what);
    case ENOSPC: return byre_fail(err, NO_SPACE, "%s: %s: no space left", path, what);
    default: return byre_fail_code(err, SYSTEM, -e, "%s: %s: %s", path, what, strerrordesc_np(e));
    }
}

static int open_flags(const struct stor_file_opts *o)
{
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (o->read_only ? O_RDONLY : O_RDWR);
    if (o->direct)
        flags |= O_DIRECT;
    if (o->create)
        flags |= O_CREAT | (o->exclusive ? O_EXCL : 0);
    return flags;
}

static int open_path(const struct open_ask *a, struct file_stor *f)
{
    f->fd = open(a->path, open_flags(a->opts), 0644);
    if (f->fd < 0 && errno == EINVAL && a->opts->direct)
        return byre_fail(a->err, NOT_SUPPORTED, "%s: direct I/O is not possible on this file system", a->path);
    return f->fd < 0 ? fail_errno(a->err, errno, a->path, a->opts->create ? "create" : "open") : 0;
}

static void drop_fd(struct file_stor *f)
{
    if (f->shared)
        fdset_leave(f);
    close(f->fd);
    f->fd = -1;
}

static int open_fd(const struct open_ask *a, struct file_stor *f, struct stat *ret_st)
{
    int r = a->opts->passed && fdset_is_name(a->path) ? fdset_open(a, f) : open_path(a, f);
    if (r < 0)
        return r;
    if (fstat(f->fd, ret_st) < 0)
        r = fail_errno(a->err, errno, a->path, "stat");
    else if (!S_ISREG(ret_st->st_mode) && !S_ISBLK(ret_st->st_mode))
        r = byre_fail(a->err, BAD_ARGUMENT, "%s: neither a regular file nor a block device", a->path);
    else if (fcntl(f->fd, F_SETFL, fcntl(f->fd, F_GETFL) & ~O_NONBLOCK) < 0)
        r = fail_errno(a->err, errno, a->path, "set flags");
    if (r < 0)
        drop_fd(f);
    return r;
}

/* Locks a file that is being created, and empties it when asked (I1). */
static int create_content(struct file_stor *f, const struct open_ask *a, bool had_bytes)
{
    unsigned perm = STOR_PERM_WRITE | STOR_PERM_RESIZE;
    int r = file_lock_blocking(f, perm, STOR_PERM_ALL & ~perm, a->err);
    if (r < 0 || !a->opts->truncate_to_zero || f->device)
        return r;
    if (ftruncate(f->fd, 0) < 0)
        return fail_errno(a->err, errno, a->path, "truncate");
    /* Q28: what was there does not come back over what is written. */
    return had_bytes && !f->s.no_flush && fdatasync(f->fd) < 0 ? fail_errno(a->err, errno, a->path, "flush") : 0;
}

static struct stor_seen seen_of(const struct stat *st)
{
    return (struct stor_seen){ S_ISREG(st->st_mode), (uint64_t)st->st_size, st->st_mtim.tv_sec, st->st_mtim.tv_nsec };
}

static void set_identity(struct file_stor *f, const struct stat *st)
{
    /* Two nodes of one device are one device; no file has inode 0. */
    f->dev = f->device ? st->st_rdev : st->st_dev;
    f->ino = f->device ? 0 : st->st_ino;
}

static int64_t open_blocking(void *arg)
{
    struct open_args *args = arg;
    const struct open_ask *a = &args->ask;
    struct file_stor *f = args->f;
    struct stat st;
    args->started = true;
    if (a->opts->create && a->opts->read_only)
        return byre_fail(a->err, BAD_ARGUMENT, "%s: a new file cannot be opened read-only", a->path);
    int r = open_fd(a, f, &st);
    if (r < 0)
        return r;
    f->device = S_ISBLK(st.st_mode);
    f->locking = a->opts->locking;
    f->s.read_only = a->opts->read_only;
    f->s.no_flush = a->opts->no_flush;
    f->s.discard_ok = a->opts->discard;
    f->s.traits.direct = a->opts->direct;
    f->one_by_one = S_ISREG(st.st_mode) && !a->opts->direct;
    set_identity(f, &st);
    f->found = seen_of(&st);
    r = a->opts->create ? create_content(f, a, st.st_size > 0) : 0;
    if (r < 0) {
        if (a->opts->create && a->opts->exclusive)
            (void)unlink(a->path);        /* ours; what the caller learns is the first failure */
        drop_fd(f);
        return r;
    }
    file_probe(f, &st);
    if (fstat(f->fd, &st) == 0)
        f->probed = seen_of(&st);
    return 0;
}

static void file_free(struct file_stor *f)
{
    pr_put(f->pr);
    pthread_mutex_destroy(&f->extent.lock);
    pthread_mutex_destroy(&f->lock_mutex);
    stor_fini(&f->s);
    free(f);
}

int stor_file_open(struct co *co, const char *path, const struct stor_file_opts *opts, struct stor **ret_s, struct byre_err *err)
{
    struct file_stor *f = calloc(1, sizeof *f);
    if (!f || stor_init(&f->s, &file_ops, path) < 0) {
        free(f);
        return byre_fail(err, NOMEM, "%s: out of memory", path);
    }
    f->fd = -1;
    pthread_mutex_init(&f->extent.lock, NULL);
    pthread_mutex_init(&f->lock_mutex, NULL);
    int r = opts->pr_manager ? pr_get(opts->prs, opts->pr_manager, &f->pr, err) : 0;
    struct open_args a = { { path, opts, err }, f, r < 0 };      /* began: *err says what went wrong */
    if (!r)
        r = (int)rt_blocking(co, open_blocking, &a);
    if (r < 0) {
        if (!a.started)
            (void)byre_fail_code(err, NOMEM, r, "%s: no worker for the open", path);
        file_free(f);
        return r;
    }
    *ret_s = &f->s;
    return 0;
}

static int64_t close_blocking(void *arg)
{
    struct file_stor *f = arg;
    if (!f->shared)
        file_unlock_blocking(f->fd);
    drop_fd(f);
    return 0;
}

void file_close(struct co *co, struct stor *s)
{
    struct file_stor *f = file_of(s);
    /* On a worker: the last close of a file may write to a remote server. A failure has no use: who needs
     * durability has flushed. */
    if (rt_blocking(co, close_blocking, f) == -ENOMEM)
        (void)close_blocking(f);
    file_free(f);
}

bool stor_file_identity(const struct stor *s, uint64_t *ret_dev, uint64_t *ret_ino)
{
    if (s->ops != &file_ops)
        return false;
    const struct file_stor *f = (const struct file_stor *)s;
    *ret_dev = f->dev;
    *ret_ino = f->ino;
    return true;
}

struct seen_args { struct file_stor *f; struct stor_seen seen; };

static int64_t seen_blocking(void *arg)
{
    struct seen_args *a = arg;
    struct stat st;
    if (fstat(a->f->fd, &st) < 0)
        return -errno;
    a->seen = seen_of(&st);
    if (a->f->probed.known && !stor_seen_differ(&a->seen, &a->f->probed))
        a->seen = a->f->found;
    return 0;
}

bool stor_file_seen(struct co *co, struct stor *s, struct stor_seen *ret)
{
    struct seen_args a = { (struct file_stor *)s, { 0 } };
    int64_t r = s->ops != &file_ops ? -ENOTSUP : a.f->may_stall ? rt_blocking(co, seen_blocking, &a) : seen_blocking(&a);
    *ret = r == 0 ? a.seen : (struct stor_seen){ 0 };
    return ret->known;
}

/* Of a folder that may be entered and written to, but not read: the whole file system, as far as it can be reached through the file. */
static int keep_all(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    int r = fd < 0 || syncfs(fd) ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return r;
}

/* The folder is that of the file itself, where the name is that of a link. */
static int64_t keep_name_blocking(void *arg)
{
    const char *path = arg;
    AUTOFREE char *real = realpath(path, NULL);
    const char *name = real ? real : path, *slash = strrchr(name, '/');
    AUTOFREE char *folder = slash ? strndup(name, slash == name ? 1 : (size_t)(slash - name)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0 && folder && errno == EACCES)
        return keep_all(name);
    int r = fd < 0 ? (folder ? -errno : -ENOMEM) : fsync(fd) ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return r == -EINVAL || r == -ENOTSUP ? 0 : r;        /* a file system that knows no fsync of folders has nothing to wait for */
}

int stor_file_keep_name(struct co *co, const char *path)
{
    if (fdset_is_name(path))
        return 0;
    return (int)rt_blocking(co, keep_name_blocking, (void *)(uintptr_t)path);
}
