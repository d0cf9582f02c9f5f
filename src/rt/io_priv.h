/* SPDX-License-Identifier: MIT
 *
 * io_priv.h: helpers that both real backends use. Private to rt/.
 */
#ifndef RT_IO_PRIV_H
#define RT_IO_PRIV_H

#include "rt/backend.h"

/* CLOCK_MONOTONIC. */
uint64_t rt_monotonic_ns(void);
/* Kernel flags (RWF_*) of the flags of rt_pwritev. */
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80               /* Linux 6.14 */
#endif
int rt_rwf_of(unsigned flags);
/* Starts a connect on a non-blocking socket: 0, -EINPROGRESS (wait for POLLOUT, then _end), or the failure. */
int rt_connect_begin(const struct rt_req *r);
int rt_connect_end(const struct rt_req *r);

#endif
