/* SPDX-License-Identifier: MIT
 *
 * file_priv.h: files and block devices as byte stores. Private to stor/file*.c and fdset.c.
 *
 *   file.c         open, create, close
 *   file_ops.c     transfers and space management
 *   file_extent.c  where data lies
 *   file_hint.c    wishes to the file system, for a new file
 *   file_probe.c   alignment and what the file system promises
 *   file_lock.c    the byte protocol that keeps programs apart
 *   file_holder.c  who holds a lock (for messages)
 *   fdset.c        files that others have opened (fdset.h)
 *
 * Concurrency  What takes a struct co is for any loop, and suspends; the calls that may block run on worker threads. The mutexes: docs/internals/concurrency.md.
 */
#ifndef STOR_FILE_PRIV_H
#define STOR_FILE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/list.h"
#include "rt/io.h"
#include "stor/stor.h"

/* Calls that the file system below has once said it does not know; not asked again. */
enum {
    FILE_NO_ZERO_RANGE = 1u << 0,
    FILE_NO_PUNCH = 1u << 1,
    FILE_NO_ALLOCATE = 1u << 2,
    FILE_NO_DSYNC = 1u << 3,
    FILE_NO_BLK_ZEROOUT = 1u << 4,
    FILE_NO_BLK_DISCARD = 1u << 5,
    FILE_NO_COPY = 1u << 6,
    FILE_NO_SEEK = 1u << 7,
    FILE_NO_DONTCACHE = 1u << 8,
    FILE_NO_CACHESTAT = 1u << 9,
};

/* The latest extent of data that was found. Holes are not kept: a stale hole would be a lie about data, a stale
 * extent of data only costs a read. */
struct file_extent_cache {
    pthread_mutex_t lock;
    uint64_t start, end;                  /* guarded by lock; empty when start == end */
    uint64_t generation;                  /* guarded by lock: counts zero, discard and truncate */
};

/* Stores of one open file that somebody passed (fdset.c I1). */
struct file_shared {
    struct list_node link;                /* of the sets */
    uint64_t dev, ino;                    /* constant */
    struct list open;                     /* file_stor.open_link: whose descriptors are open; guarded by the sets' `sharing`, and never empty there */
    pthread_mutex_t mutex;                /* orders changes of their locks; taken before lock_mutex, on workers only */
    struct list stores;                   /* file_stor.shared_link: who may have locks; guarded by mutex */
};

struct fdset;
struct pr_manager;
struct file_stor {
    struct stor s;                        /* first */
    int fd;
    bool device;                          /* block device */
    bool offload_zero;                    /* device: zeroing does not move data */
    bool one_by_one;                      /* buffered writes of it wait for each other in the kernel. Constant */
    struct rt_lane lane;                  /* of those */
    bool may_stall;                       /* fstat may have to ask another machine */
    uint64_t dev, ino;                    /* identity */
    struct stor_seen found, probed;       /* before the probe, which may touch the file, and behind it */
    enum stor_locking locking;
    _Atomic unsigned lacks;               /* FILE_NO_x */
    _Atomic bool streams;                 /* stor_stream */
    _Atomic uint64_t streamed;            /* bytes written since */
    struct file_extent_cache extent;
    pthread_mutex_t lock_mutex;           /* orders calls that change the locks; held on workers only */
    unsigned held, unshared;              /* guarded by lock_mutex: bytes 100+n and 200+n that we hold */
    struct file_shared *shared;           /* NULL: it was opened by its path, and the next four say nothing */
    struct list_node open_link, shared_link;
    struct fdsets *sets;
    struct fdset *set;
    struct pr_manager *pr;                /* a user of it (pr.h); NULL: none. Constant */
};

static inline struct file_stor *file_of(struct stor *s) { return (struct file_stor *)s; }
static inline bool file_lacks(struct file_stor *f, unsigned what) { return atomic_load_explicit(&f->lacks, memory_order_relaxed) & what; }
static inline void file_set_lacks(struct file_stor *f, unsigned what) { atomic_fetch_or(&f->lacks, what); }
/* Does -errno say that the call is not known here (rather than that it failed)? */
static inline bool file_is_unsupported(int r) { return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENOTTY || r == -ENODEV; }

/* ---- fdset.c: worker threads, block ---- */
struct open_ask { const char *path; const struct stor_file_opts *opts; struct byre_err *err; };
/* The name is one of a set, and a->opts->passed are the sets: f->fd is a duplicate of the descriptor that fits. */
MUST_USE int fdset_open(const struct open_ask *a, struct file_stor *f);
/* Behind it, before f->fd is closed: locks of f that no other store of the same open file has are given up. */
void fdset_leave(struct file_stor *f);

/* ---- file_ops.c ---- */
extern const struct stor_ops file_ops;

/* ---- file.c ---- */
void file_close(struct co *co, struct stor *s);

/* ---- file_extent.c ---- */
int file_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e);
int file_extents(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max);
/* Space was given back or the length changed: what is known of extents is old. Call after the change. */
void file_extent_forget(struct file_stor *f);

/* ---- file_probe.c: called on worker threads, block ---- */
/* Fills s.lim and s.traits, offload_zero and may_stall from the open file. st: its fstat. */
void file_probe(struct file_stor *f, const struct stat *st);

/* ---- file_lock.c ---- */
int file_lock(struct co *co, struct stor *s, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err);
/* The same on a worker thread, without waiting for a dead holder; blocks. */
int file_lock_blocking(struct file_stor *f, unsigned perm, unsigned shared, struct byre_err *err);
/* Gives all locks of an open file up, before it is closed; blocks. */
void file_unlock_blocking(int fd);
/* The same for one of several stores of an open file; the mutex of f->shared is held. */
void file_unlock_shared(struct file_stor *f);

/* ---- file_holder.c: worker threads, blocks ---- */
/* Describes who, other than our own file descriptor own_fd, holds a lock on `byte` of the file (st_dev, st_ino):
 * "process 12 (name)" (true) or, when the kernel does not tell us, "another process" (false). Always fills buf. */
bool file_holder(const struct stat *st, int own_fd, uint64_t byte, char *buf, size_t size);

#endif
