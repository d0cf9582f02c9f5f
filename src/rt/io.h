/* SPDX-License-Identifier: MIT
 *
 * io.h: file and socket operations of a coroutine. Each suspends; each returns the kernel's result or a
 * negative errno. No retry of short transfers here: stor/ and the exports decide. EINTR and EAGAIN of files
 * are retried here.
 */
#ifndef RT_IO_H
#define RT_IO_H

#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/err.h"
#include "rt/co.h"

enum {                                    /* flags of rt_pwritev; what kernel or file do not know: -EOPNOTSUPP */
    RT_RWF_DSYNC = 1u << 0,
    RT_RWF_DONTCACHE = 1u << 1,           /* pages that it brings into the page cache are written out at once and leave it; alone */
};

MUST_USE int64_t rt_preadv(struct co *co, int fd, const struct iovec *iov, unsigned cnt, uint64_t off);
MUST_USE int64_t rt_pwritev(struct co *co, int fd, const struct iovec *iov, unsigned cnt, uint64_t off, unsigned flags);

/* Writes that the kernel lets in one at a time (buffered ones of a regular file: the file system locks the inode). Those of several
 * loops go through the loop that has some under way: the kernel's threads for several rings would only wait for each other, asleep. A lane
 * that is all zeros is ready for use. It belongs to an open store, and must stay until the last call has returned. */
struct rt_lane { _Atomic uint64_t word; };
MUST_USE int64_t rt_pwritev_lane(struct co *co, struct rt_lane *lane, int fd, const struct iovec *iov, unsigned cnt, uint64_t off);

MUST_USE int rt_fdatasync(struct co *co, int fd);
MUST_USE int rt_fallocate(struct co *co, int fd, int mode, uint64_t off, uint64_t len);

/* Sockets are non-blocking. These honour cancellation (-ECANCELED) and the coroutine's deadline (-ETIMEDOUT). */
MUST_USE int rt_accept(struct co *co, int fd);                                        /* new fd, CLOEXEC and non-blocking */
MUST_USE int rt_connect(struct co *co, int fd, const struct sockaddr *sa, socklen_t len);
MUST_USE int64_t rt_recv(struct co *co, int fd, void *buf, size_t len);               /* 0 = end of stream */
MUST_USE int rt_recv_all(struct co *co, int fd, void *buf, size_t len);               /* all of them: 0, or -errno; -ECONNRESET: the stream ends before */
MUST_USE int64_t rt_sendmsg(struct co *co, int fd, const struct msghdr *msg);         /* MSG_NOSIGNAL is added; may be short */
MUST_USE int rt_poll(struct co *co, int fd, short events);                            /* revents (> 0) */

#endif
