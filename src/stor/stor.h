/* SPDX-License-Identifier: MIT
 *
 * stor.h: byte stores. A store is a flat array of bytes with a length; it knows nothing of formats.
 *
 * Every call enters through the gate functions below (stor.c), which check ranges, split and continue short
 * transfers, bounce what alignment demands, serialise sub-block writes, and latch failed flushes (RG27);
 * drivers implement struct stor_ops: file.c, mem.c, null.c and nbd_ops.c here; sim/store.c; and stores that lie over others: fmt/luks/lk_store.c
 * (what is encrypted), graph/under.c and graph/node_stor.c (a node), graph/blkdebug.c (limits), job/stepped.c (pauses of a job). What those who use a store tell of its future: event.h.
 *
 * Invariants
 *   I1  After a failed flush every later flush fails with FLUSH_LATCHED until the store is reopened.
 *   I2  Reads past the end of the store give zeros; metadata readers use stor_read_exact, which does not.
 *   I3  Two writes that touch the same device block but not the same bytes never lose one another
 *       (read-modify-write is serialised across all loops of a store).
 *   I4  Buffers of a write are not changed by the store and must not be changed by the caller until it returns.
 *   I5  No request ends with -EUCLEAN, -ESTALE or -ECANCELED, which file systems say of themselves: -EIO then. Above, they mean an image whose tables
 *       make no sense, a block that has moved, and that whoever asked does not want it any more.
 * Concurrency  All calls from any loop of the runtime, at the same time.
 * Failure      -errno; a failed write leaves each of its sectors old or new; nothing else changed.
 */
#ifndef STOR_STOR_H
#define STOR_STOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/iov.h"
#include "rt/co.h"

struct stor;

enum {                                    /* flags of write and zero */
    STOR_FUA = 1u << 0,                   /* durable when the call returns */
    STOR_UNMAP = 1u << 1,                 /* zero: may deallocate */
    STOR_NO_FALLBACK = 1u << 2,           /* zero: -ENOTSUP rather than write zeros */
    STOR_SLOW = 1u << 3,                  /* with it: the device may write them if it can do so without us */
};

enum stor_content { STOR_DATA, STOR_HOLE };          /* a hole reads as zeros and occupies no space */
/* note: what a map that the user asked for says of these bytes beside their content (STOR_NOTE_x; 0: nothing was asked for). It is shown, and
 * decides nothing: it may mean anything. */
enum { STOR_NOTE = 1u << 0, STOR_NOTE_HOLE = 1u << 1, STOR_NOTE_ZERO = 1u << 2 };
struct stor_extent { enum stor_content content; uint64_t off, len; unsigned note; };

struct stor_limits {
    uint32_t block;            /* request alignment in bytes that the driver needs (1 if none) */
    uint32_t mem_align;        /* memory alignment of buffers (1 if none) */
    uint32_t opt_block;        /* size below which writes cost a read on the device (hint; >= 512) */
    uint64_t max_transfer;     /* bytes per request; 0 = no limit */
    uint32_t zero_block;       /* alignment that zero and discard need beyond `block` (0 or 1 if none) */
};

struct stor_traits {
    bool regular;              /* a file that can grow and shrink by truncate */
    bool zero_growth;          /* space gained by growing reads zero until it is written, as surely as zeroed space (DESIGN D4) */
    bool zero_crash;           /* with it: nor does a crash in the middle of a first write there show what the disk held before (Q23) */
    bool serial_growth;        /* kernel where zeroing past the end races with writes: serialise */
    bool can_punch, can_zero, can_copy;
    bool direct;               /* O_DIRECT: data never waits in the page cache */
    bool enospc_early;         /* lack of space shows in the write itself, never in a later flush (see stor_sync.c) */
};

struct stor_ops {
    const char *name;
    /* Transfers: aligned to limits.block, inside max_transfer; may be short (gate continues). Returns bytes. */
    int64_t (*preadv)(struct co *co, struct stor *s, struct iov v, uint64_t off);
    int64_t (*pwritev)(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags);
    int (*flush)(struct co *co, struct stor *s);
    int (*zero)(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags);     /* -ENOTSUP: gate writes zeros */
    int (*discard)(struct co *co, struct stor *s, uint64_t off, uint64_t len);                  /* -ENOTSUP: ignored by policy */
    int (*truncate)(struct co *co, struct stor *s, uint64_t len);                               /* grow reads zero */
    int (*preallocate)(struct co *co, struct stor *s, uint64_t off, uint64_t len);              /* fallocate; may be NULL */
    int (*length)(struct co *co, struct stor *s, uint64_t *ret_len);
    int (*extent)(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e);
    /* Several at once, one behind the other from off on: how many (at least 1). May be NULL. */
    int (*extents)(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max);
    int64_t (*copy_from)(struct co *co, struct stor *s, uint64_t off, struct stor *src, uint64_t src_off, uint64_t len);
    int (*lock)(struct co *co, struct stor *s, struct stor *beside, unsigned perm, unsigned shared, struct byre_err *err);      /* beside: see stor_lock_beside; or NULL */
    int (*allocated)(struct co *co, struct stor *s, uint64_t *ret_bytes);                       /* occupied on disk */
    void (*stream)(struct stor *s, bool on);                                                    /* see stor_stream; may be NULL */
    void (*drop_cache)(struct co *co, struct stor *s);                                          /* see stor_drop_cache; may be NULL */
    int64_t (*cached)(struct co *co, struct stor *s);                                           /* see stor_cached; may be NULL */
    void (*close)(struct co *co, struct stor *s);                                               /* frees s */
};

/* Common head of every store; drivers embed it first. Fields below are set by the driver at open and then constant. */
struct stor {
    const struct stor_ops *ops;
    struct stor_limits lim;
    struct stor_traits traits;
    bool read_only;
    bool no_flush;                       /* cache mode unsafe: flush does nothing (the user's choice) */
    bool discard_ok;                     /* discard=unmap: punches are wanted */
    char *name;                          /* for messages; owned */
    struct stor_internal *internal;      /* gate: latch, block locks, known length. Not for drivers */
    struct stor_end_watch *_Atomic end_watch;      /* gate: stor_watch_ends */
    struct stor_events *events;          /* who is told what is about to be done with it (event.h); NULL: nobody */
    _Atomic uint64_t discards, failed_discards, discarded_bytes;      /* of files and devices; counted by the driver, on any loop */
};

/* Drivers call these around their own open and close. */
MUST_USE int stor_init(struct stor *s, const struct stor_ops *ops, const char *name);
void stor_fini(struct stor *s);

/* ---- gate: what everybody else calls. All suspend. ---- */
MUST_USE int stor_read(struct co *co, struct stor *s, struct iov v, uint64_t off);          /* zeros past the end (I2) */
MUST_USE int stor_read_exact(struct co *co, struct stor *s, void *buf, uint64_t len, uint64_t off); /* short = -EIO */
MUST_USE int stor_write(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags);
MUST_USE int stor_write_buf(struct co *co, struct stor *s, const void *buf, uint64_t len, uint64_t off, unsigned flags);
MUST_USE int stor_flush(struct co *co, struct stor *s);              /* in an image: only meta/ may call this (D5) */
MUST_USE int stor_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags);
MUST_USE int stor_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len);       /* advisory; 0 when unsupported */
MUST_USE int stor_punch(struct co *co, struct stor *s, uint64_t off, uint64_t len);         /* the same whatever the discard policy */
MUST_USE int stor_truncate(struct co *co, struct stor *s, uint64_t len);
MUST_USE int stor_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len);
MUST_USE int stor_length(struct co *co, struct stor *s, uint64_t *ret_len);
MUST_USE int stor_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e);
/* At most max extents, one behind the other from off on, together no longer than len: how many (at least 1). */
MUST_USE int stor_extents(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max);
/* In-kernel copy; bytes copied, 0 or -ENOTSUP: use read and write. -EBUSY: this time; too many copies are under way. */
MUST_USE int64_t stor_copy(struct co *co, struct stor *dst, uint64_t dst_off, struct stor *src, uint64_t src_off, uint64_t len);
MUST_USE int stor_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes);
/* While on: much is written once and flushed at the end, so the disk may begin early. A hint; any loop, does not suspend. */
void stor_stream(struct stor *s, bool on);
/* What this machine remembers of the content in its page cache is forgotten, as far as it is durable: for a file that another machine may change. A hint. */
void stor_drop_cache(struct co *co, struct stor *s);
/* Bytes of the content that the page cache of this machine has, whoever has put them there; -errno. Where the kernel cannot count them (before Linux 6.5),
 * those of the first part that has any; that takes a while for a large file. */
MUST_USE int64_t stor_cached(struct co *co, struct stor *s);
bool stor_flush_latched(const struct stor *s);
/* w is told, before they are made, where writes and zeros end, on any loop; must not suspend. NULL: nobody is. Who asked before is asked
 * until the requests of then have ended. */
struct stor_end_watch { void (*fn)(struct stor_end_watch *w, uint64_t end); };
void stor_watch_ends(struct stor *s, struct stor_end_watch *w);
/* One owner more: the store is closed when each of them has called stor_close. Home of the owners. Returns s. */
struct stor *stor_share(struct stor *s);
/* For a copy that may outlast the owners: the file stays open until stor_give_back, but locks go with the last owner. While an owner keeps it open; any
 * loop. false: it is none that the kernel copies. */
MUST_USE bool stor_lend(struct stor *s);
void stor_give_back(struct co *co, struct stor *s);
void stor_close(struct co *co, struct stor *s);                       /* NULL ok */

/* Locks by the peer's byte protocol: OFD read locks on byte 100+p for each permission held and on 200+p for each
 * permission that others may NOT have, tested against 200+p and 100+p. FEATURES 3.007. stor_lock changes what is held
 * to exactly `perm` and `shared` (0 and STOR_PERM_ALL drop everything); refused: -EAGAIN, and what was held stays. A
 * text is made only if err is given: finding the holder takes a walk through /proc. */
enum { STOR_PERM_READ = 1u << 0, STOR_PERM_WRITE = 1u << 1, STOR_PERM_WRITE_UNCHANGED = 1u << 2, STOR_PERM_RESIZE = 1u << 3, STOR_PERM_ALL = 15u };
MUST_USE int stor_lock(struct co *co, struct stor *s, unsigned perm, unsigned shared, struct byre_err *err);
/* The same for s, of which nothing is locked yet, while `old` is another store of the same file in this process: what old holds, and so keeps
 * from others, is taken without a look at who has it. So the lock goes over to s, and is nobody else's at any moment. */
MUST_USE int stor_lock_beside(struct co *co, struct stor *s, struct stor *old, unsigned perm, unsigned shared, struct byre_err *err);

/* ---- drivers ---- */
struct stor_nbd_opts;
struct tls_set;
struct fdsets;
struct pr_set;
enum stor_locking { STOR_LOCK_AUTO, STOR_LOCK_ON, STOR_LOCK_OFF };
struct stor_file_opts {
    bool read_only;
    bool direct;                 /* O_DIRECT */
    bool no_flush;               /* cache=unsafe */
    bool discard;                /* discard=unmap */
    enum stor_locking locking;
    bool create;                 /* O_CREAT; with truncate_to_zero the content goes */
    bool truncate_to_zero;       /* after the lock is held */
    bool exclusive;              /* O_EXCL */
    struct tls_set *tls;         /* where credentials are looked up; NULL: there are none */
    struct fdsets *passed;       /* what names as /dev/fdset/1 mean (stor/fdset.h); NULL: they are paths as others */
    struct pr_set *prs;          /* managers of persistent reservations (stor/pr.h); NULL: there are none */
    const char *pr_manager;      /* the id of one, for files and devices: it is used until the store is closed. NULL: none */
    void (*warn)(void *arg, const char *text); void *warn_arg;      /* hears what a server complains of, on any loop; NULL: nobody does */
    const struct stor_nbd_opts *nbd;     /* for those who open stores of any kind: it is an export of an NBD server (stor/nbd.h) */
    bool null;                   /* the same: it keeps nothing (stor_null_new) */
};
/* Regular file or block device. Locks are NOT taken here except when creating; call stor_lock. When creating, the
 * new file is held with WRITE and RESIZE, shared by nobody who wants either, until stor_lock or close. */
MUST_USE int stor_file_open(struct co *co, const char *path, const struct stor_file_opts *opts, struct stor **ret_s, struct byre_err *err);
/* Identity for loop detection (RG22): false when the store has none. */
bool stor_file_identity(const struct stor *s, uint64_t *ret_dev, uint64_t *ret_ino);
/* Length and time of the last change, as they are now: they differ once somebody has written. What opening the store did to them
 * does not count. false: the store cannot tell (a device, a server). Suspends. */
struct stor_seen { bool known; uint64_t bytes; int64_t sec, nsec; };
bool stor_file_seen(struct co *co, struct stor *s, struct stor_seen *ret);
static inline bool stor_seen_differ(const struct stor_seen *a, const struct stor_seen *b)
{
    return a->known && b->known && (a->bytes != b->bytes || a->sec != b->sec || a->nsec != b->nsec);
}
/* Wishes to the file system for a file that is still empty. extent_bytes: 0 = none. */
struct stor_file_hints { bool nocow; uint64_t extent_bytes; };
void stor_file_hint(struct co *co, const char *path, const struct stor_file_hints *h);
/* Space for a range that lies behind the end of a regular file, which stays as long as it is. -ENOTSUP: not here. */
MUST_USE int stor_file_ahead(struct co *co, struct stor *s, uint64_t off, uint64_t len);
/* The directory entry of this file is durable when it returns 0: after a power cut the file is where it was made. Of a set of descriptors nothing is
 * done: where its files are is known to those who passed them. */
MUST_USE int stor_file_keep_name(struct co *co, const char *path);
MUST_USE int stor_mem_new(struct co *co, const char *name, uint64_t len, struct stor **ret_s);
#define STOR_NULL_LEN (UINT64_C(1) << 30)        /* unless said otherwise */
struct stor_null_opts { uint64_t len; uint64_t latency_ns; bool read_zeroes; };
MUST_USE int stor_null_new(struct co *co, const struct stor_null_opts *opts, struct stor **ret_s);
bool stor_null_is_name(const char *text);        /* null-co:... or null-aio:...: means such a store, and no file */
bool stor_names_no_file(const char *text);       /* that, or a disk of an NBD server (stor_nbd_is_name): it lies in no folder of this machine */

#endif
