/* SPDX-License-Identifier: MIT
 *
 * chardev.h: character devices: where monitors are, under names (FEATURES 8.003, 8.022).
 *
 *     chardev_add -> (chardev_monitor) -> chardev_remove, or chardevs_free at the end
 *
 * Concurrency  home loop
 */
#ifndef CTL_CHARDEV_H
#define CTL_CHARDEV_H

#include "ctl/ctl_priv.h"
#include "rt/unix_path.h"

enum chardev_kind { CHARDEV_NULL, CHARDEV_SOCKET, CHARDEV_STDIO, CHARDEV_RINGBUF, CHARDEV_MEMORY };      /* the last two are one */
struct chardev_opts {
    const char *id;                      /* 1 to CHARDEV_ID_MAX bytes */
    enum chardev_kind kind;
    bool server;                         /* a socket: others connect to it */
    const struct unix_addr *at;          /* a unix socket; NULL: fd */
    int fd;                              /* handed over: owned from now on, also on failure */
    uint64_t ring_bytes;                 /* of RINGBUF: a power of two up to CHARDEV_RING_MAX */
};
#define CHARDEV_ID_MAX 127u
#define CHARDEV_RING_MAX (UINT64_C(16) << 20)

struct chardev {
    struct list_node link;
    char *id, *path;                     /* path: or the abstract name */
    bool abstract;
    enum chardev_kind kind;
    bool used;                           /* a monitor has it; it stays until the end */
    char *monitor;                       /* id of that one; NULL: it has none */
    struct ctl_listener *listener;       /* a server that lets nobody in yet; NULL: none, or the monitor has it */
    bool served;                         /* a server whose listener the monitor has */
    int fd;                              /* a connection that nobody reads yet; -1 */
    uint8_t *ring;                       /* NULL: it keeps no bytes */
    uint64_t ring_bytes, ring_in, ring_out;      /* bytes that ever came and went; the difference is there */
};

struct chardev *chardev_find(struct ctl *c, const char *id);
/* A server listens, a client is connected, when it returns. EXISTS: the id is taken. Suspends. */
MUST_USE int chardev_add(struct co *co, struct ctl *c, const struct chardev_opts *o, struct byre_err *err);
/* NOT_FOUND, BUSY. Suspends. */
MUST_USE int chardev_remove(struct co *co, struct ctl *c, const char *id, struct byre_err *err);
/* From now on clients of it are served, by a monitor of that name (NULL: none). NOT_FOUND, BUSY; EXISTS: another monitor has the name; NOT_SUPPORTED: nobody
 * can talk through it. */
MUST_USE int chardev_monitor(struct ctl *c, const char *id, const char *monitor, bool pretty, struct byre_err *err);
void chardevs_free(struct co *co, struct ctl *c);

#endif
