/* SPDX-License-Identifier: MIT
 *
 * tcp.h: how a connection of ours over TCP behaves, on either side.
 */
#ifndef RT_TCP_H
#define RT_TCP_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* What is sent leaves at once, and a host that is gone is noticed after a minute and a half on a connection that is idle. What fails here costs time only,
 * as on a unix socket, which has none of this. Does not block. */
static inline void tcp_tune(int fd)
{
    static const int on = 1, idle_s = 30, pause_s = 10, probes = 6;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Not TCP_USER_TIMEOUT: that also ends a connection whose far end lives, and does not read for so long. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &pause_s, sizeof pause_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

#endif
