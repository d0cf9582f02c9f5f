/* SPDX-License-Identifier: MIT
 *
 * addr.h: addresses of sockets as arguments of commands: SocketAddressLegacy, a union with its data one level below, as the
 * peer has it. Rows only; everything is constant.
 */
#ifndef CTL_ADDR_H
#define CTL_ADDR_H

#include "ctl/schema.h"
#include "rt/unix_path.h"

struct ctl_addr_inet { const char *host, *port; };
struct ctl_addr_unix { const char *path; bool abstract, tight, has_tight; };
struct ctl_addr_vsock { const char *cid, *port; };
struct ctl_addr_fd { const char *str; };
enum ctl_addr_type { CTL_ADDR_INET, CTL_ADDR_UNIX, CTL_ADDR_VSOCK, CTL_ADDR_FD };
struct ctl_addr {
    int type;
    union { const struct ctl_addr_inet *inet; const struct ctl_addr_unix *un; const struct ctl_addr_vsock *vsock; const struct ctl_addr_fd *fd; };
};
extern const struct ctl_shape ctl_addr_shape;

static inline struct unix_addr ctl_unix_addr(const struct ctl_addr_unix *u)
{
    return (struct unix_addr){ u->path, u->abstract, u->abstract && u->has_tight && !u->tight };
}

#endif
