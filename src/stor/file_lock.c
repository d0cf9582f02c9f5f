/* SPDX-License-Identifier: MIT
 *
 * file_lock.c: the byte protocol that keeps programs apart (FEATURES 3.007 to 3.009).
 *
 * Purpose      Says what we do with a file and what others must not do, in a way that QEMU's programs say and hear too.
 * Owns         The locks of the store's file descriptor; held and unshared of struct file_stor.
 * Invariants   I1  For each permission n held, byte 100+n has our read lock; for each that others may not have, byte
 *                  200+n has. The locks are taken first and others' looked for afterwards, so of two programs that
 *                  arrive together at least one sees the other. (Both may be refused.)
 *              I2  A refused change leaves the locks as they were.
 *              I3  A lock that no process is seen to hold is waited for, up to GHOST_WAIT_MS: a killed program's requests
 *                  keep its file open, and locked, until the kernel has ended them. They may still write, so to ignore
 *                  the lock would be wrong, and a restart after a kill must not fail.
 *              I4  A store that is closed gives its locks up first: what io_uring still holds of the file after a request has been
 *                  answered would keep them for a moment, and the next program would be refused.
 *              I5  What is held already is not looked for again: whoever came since has seen it, and was refused. So a change that only gives
 *                  something up cannot be refused, and a second store of the file, in the same process, can hold what the first one holds.
 *              I6  Locks belong to the open file. Where somebody passed that (fdset.c), several stores may have it: the kernel keeps these from one another
 *                  no more, so what each of them holds is looked at here, and a byte is given up when none of them holds it.
 * Order        Nothing on disk.
 * Concurrency  Worker threads (fcntl may ask a server); lock_mutex orders calls on one store. The locks belong to the
 *              open file description: they end with the store, and two stores of one process exclude each other too. The mutex of f->shared orders
 *              those of one open file, and is taken before lock_mutex.
 * Failure      -EAGAIN: refused; the text names the file, what was asked, and the holder. On a file system without such
 *              locks, `auto` lets readers pass unlocked and refuses writers; `on` refuses both.
 * Tests        file_lock_test.c
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "rt/co.h"
#include "rt/loop.h"
#include "stor/file_priv.h"

enum { BYTE_HELD = 100, BYTE_UNSHARED = 200, PERMS = 4, GHOST_WAIT_MS = 2000, GHOST_STEP_MS = 20 };

static const char *const perm_name[PERMS] = { "consistent read", "write", "write unchanged", "resize" };

struct lock_args {
    struct file_stor *f, *beside;   /* beside: another store of the file, whose locks f may have, too; NULL: none */
    unsigned perm, shared;
    struct byre_err *err;
    bool started, nobody;       /* nobody: refused, and no process is seen to hold the lock */
};

/* Sets (F_RDLCK) or drops (F_UNLCK) one byte. 0 or -errno. */
static int set_byte(int fd, short type, unsigned byte)
{
    struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    int r;
    do
        r = fcntl(fd, F_OFD_SETLK, &l);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Sets or drops the bytes base+n of mask. After a failure some may be set. */
static int set_bytes(int fd, short type, unsigned base, unsigned mask)
{
    for (unsigned n = 0; n < PERMS; n++) {
        int r = mask & (1u << n) ? set_byte(fd, type, base + n) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* I4 */
void file_unlock_blocking(int fd)
{
    struct flock l = { .l_type = F_UNLCK, .l_whence = SEEK_SET };    /* every byte */
    (void)fcntl(fd, F_OFD_SETLK, &l);                                /* if it fails, closing does it */
}

/* 1: somebody else has a lock on the byte; 0: nobody; -errno. */
static int is_taken(int fd, unsigned byte)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    if (fcntl(fd, F_OFD_GETLK, &l) < 0)
        return -errno;
    return l.l_type != F_UNLCK;
}

/* Do others refuse what we hold (base 200), or do what we refuse (base 100)? Byte of the first conflict, 0, -errno. */
static int find_conflict(int fd, unsigned base, unsigned mask)
{
    for (unsigned n = 0; n < PERMS; n++) {
        int r = mask & (1u << n) ? is_taken(fd, base + n) : 0;
        if (r)
            return r < 0 ? r : (int)(base + n);
    }
    return 0;
}

/* inside: another store of the same open file has it (I6). */
static int refuse(struct file_stor *f, unsigned byte, bool inside, bool *ret_nobody, struct byre_err *err)
{
    char who[256] = "another node here, over the same descriptor,";
    struct stat st;
    bool unshared = byte >= BYTE_UNSHARED;
    const char *perm = perm_name[byte - (unsigned)(unshared ? BYTE_UNSHARED : BYTE_HELD)];
    if (!err)
        return byre_fail(NULL, LOCKED, "%s", "");   /* nobody will read who it is: the search is long */
    if (fstat(f->fd, &st) < 0)
        memset(&st, 0, sizeof st);
    *ret_nobody = !inside && !file_holder(&st, f->fd, byte, who, sizeof who);
    if (unshared)
        return byre_fail(err, LOCKED, "%s: in use: %s does not let others have the permission '%s'", f->s.name, who, perm);
    return byre_fail(err, LOCKED, "%s: in use: %s has the permission '%s', which others must not have here", f->s.name, who, perm);
}

/* Is errno what a file system without these locks says? */
static bool is_no_locks(int r)
{
    return r == -EINVAL || r == -ENOLCK || r == -ENOSYS || r == -EOPNOTSUPP;
}

static int no_locks(struct file_stor *f, unsigned perm, int r, struct byre_err *err)
{
    bool writer = perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE);
    if (f->locking == STOR_LOCK_AUTO && !writer)
        return 0;
    return byre_fail(err, NOT_SUPPORTED, "%s: the file system has no open-file locks (%s), so nobody else can be kept out; "
                     "%s needs locking turned off", f->s.name, strerrordesc_np(-r), writer ? "writing" : "this");
}

/* What a store holds, seen from another one of the same file. */
struct own { unsigned held, unshared; };

static struct own own_of(const struct file_stor *f, struct file_stor *beside)
{
    struct own o = { 0 };
    if (!beside || beside->dev != f->dev || beside->ino != f->ino)
        return o;
    pthread_mutex_lock(&beside->lock_mutex);
    o = (struct own){ beside->held, beside->unshared };
    pthread_mutex_unlock(&beside->lock_mutex);
    return o;
}

/* ---- stores of one open file (I6); the mutex of f->shared is held ---- */

/* What all but f hold. */
static struct own others_of(const struct file_stor *f)
{
    struct own o = { 0 };
    if (!f->shared)
        return o;
    LIST_FOR(at, &f->shared->stores) {
        const struct file_stor *m = CONTAINER_OF(at, struct file_stor, shared_link);
        o.held |= m == f ? 0 : m->held;
        o.unshared |= m == f ? 0 : m->unshared;
    }
    return o;
}

/* As find_conflict, among them; but for what own has. */
static unsigned conflict_inside(const struct file_stor *f, struct own own, unsigned new_held, unsigned new_unshared)
{
    const struct own o = others_of(f);
    unsigned held = new_held & ~own.held & o.unshared, unshared = new_unshared & ~own.unshared & o.held;
    return held ? BYTE_UNSHARED + (unsigned)__builtin_ctz(held) : unshared ? BYTE_HELD + (unsigned)__builtin_ctz(unshared) : 0;
}

static void drop_bytes(const struct file_stor *f, unsigned held, unsigned unshared)
{
    const struct own o = others_of(f);
    (void)set_bytes(f->fd, F_UNLCK, BYTE_HELD, held & ~o.held);
    (void)set_bytes(f->fd, F_UNLCK, BYTE_UNSHARED, unshared & ~o.unshared);
}

void file_unlock_shared(struct file_stor *f)
{
    pthread_mutex_lock(&f->lock_mutex);
    drop_bytes(f, f->held, f->unshared);
    f->held = f->unshared = 0;
    pthread_mutex_unlock(&f->lock_mutex);
}

/* I5: others are looked for only where something is new. */
static int change(struct file_stor *f, struct own own, unsigned perm, unsigned unshared, bool *ret_nobody, struct byre_err *err)
{
    unsigned new_held = perm & ~f->held, new_unshared = unshared & ~f->unshared, inside = conflict_inside(f, own, new_held, new_unshared);
    if (inside)
        return refuse(f, inside, true, ret_nobody, err);
    int r = set_bytes(f->fd, F_RDLCK, BYTE_HELD, new_held);
    if (r == 0)
        r = set_bytes(f->fd, F_RDLCK, BYTE_UNSHARED, new_unshared);
    if (r == 0)
        r = find_conflict(f->fd, BYTE_UNSHARED, new_held & ~own.held);
    if (r == 0)
        r = find_conflict(f->fd, BYTE_HELD, new_unshared & ~own.unshared);
    if (r == 0) {
        /* Dropping cannot be refused; if the server is gone, so are the locks. */
        drop_bytes(f, f->held & ~perm, f->unshared & ~unshared);
        f->held = perm;
        f->unshared = unshared;
        return 0;
    }
    drop_bytes(f, new_held, new_unshared);
    if (r > 0)
        return refuse(f, (unsigned)r, false, ret_nobody, err);
    if (r == -EAGAIN || r == -EACCES)     /* somebody has a write lock on one of our bytes */
        return byre_fail(err, LOCKED, "%s: in use: another program has locked the whole file", f->s.name);
    if (is_no_locks(r))
        return no_locks(f, perm, r, err);
    return byre_fail_code(err, SYSTEM, r, "%s: lock: %s", f->s.name, strerrordesc_np(-r));
}

static int lock_once(struct lock_args *a)
{
    struct file_stor *f = a->f;
    a->nobody = false;
    if (f->locking == STOR_LOCK_OFF)
        return 0;
    if (f->shared)
        pthread_mutex_lock(&f->shared->mutex);
    const struct own own = own_of(f, a->beside);
    pthread_mutex_lock(&f->lock_mutex);
    int r = change(f, own, a->perm, STOR_PERM_ALL & ~a->shared, &a->nobody, a->err);
    pthread_mutex_unlock(&f->lock_mutex);
    if (f->shared)
        pthread_mutex_unlock(&f->shared->mutex);
    return r;
}

int file_lock_blocking(struct file_stor *f, unsigned perm, unsigned shared, struct byre_err *err)
{
    struct lock_args a = { f, NULL, perm, shared, err, true, false };
    return lock_once(&a);
}

static int64_t lock_blocking(void *arg)
{
    struct lock_args *a = arg;
    a->started = true;
    return lock_once(a);
}

int file_lock(struct co *co, struct stor *s, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err)
{
    struct lock_args a = { file_of(s), beside ? file_of(beside) : NULL, perm, shared, err, false, false };
    int r = (int)rt_blocking(co, lock_blocking, &a);
    for (unsigned waited = 0; r == -EAGAIN && a.nobody && waited < GHOST_WAIT_MS; waited += GHOST_STEP_MS) {
        if (co_sleep(co, GHOST_STEP_MS * UINT64_C(1000000)) < 0)
            break;
        a.started = a.nobody = false;
        r = (int)rt_blocking(co, lock_blocking, &a);
    }
    if (r < 0 && !a.started)
        return byre_fail_code(err, NOMEM, r, "%s: no worker for the lock", s->name);
    return r;
}
