/* SPDX-License-Identifier: MIT
 *
 * nbd.h: disks served over NBD.
 *
 *     nbd_server_new -> nbd_server_add(export)... -> nbd_server_listen_unix / _tcp / _fd... -> nbd_server_stop -> nbd_server_free
 *
 * Any number of servers may exist. Exports may come and go while clients are connected.
 *
 * Concurrency  Every call below is made on the server's home loop, unless it says otherwise. Connections are spread over
 *              all loops of the runtime; each belongs to one, from the end of the handshake on to that of its export if it has one. A disk is
 *              asked from any loop.
 * Limits       struct nbd_server_opts, and proto/nbd/nbd_codec.h for what one message may hold.
 */
#ifndef EXPORT_NBD_NBD_H
#define EXPORT_NBD_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/iov.h"
#include "rt/loop.h"
#include "rt/unix_path.h"

/* ---- what the server needs of a disk ---- */

enum { NBD_DISK_FUA = 1u << 0, NBD_DISK_UNMAP = 1u << 1, NBD_DISK_NO_FALLBACK = 1u << 2 };

#define NBD_STATUS_LOOKS 256u        /* for one answer of a disk */

struct nbd_disk_status {
    uint64_t len;                /* > 0: bytes from the start of the question for which the rest holds */
    bool data;                   /* bytes are stored */
    bool zero;                   /* reads as zeros */
    unsigned depth;              /* 0: no layer has it; 1: the top layer; 2: the one below; ... */
    unsigned looks;              /* what it has cost, in looks at the disk's tables; 0 counts as 1 */
};

/* Ranges are inside the length. All but length may suspend; 0 or -errno. */
struct nbd_disk_ops {
    uint64_t (*length)(void *disk);
    int (*read)(struct co *co, void *disk, struct iov v, uint64_t off);
    int (*write)(struct co *co, void *disk, struct iov v, uint64_t off, unsigned flags);
    int (*zero)(struct co *co, void *disk, uint64_t off, uint64_t len, unsigned flags);   /* NO_FALLBACK: -ENOTSUP if not fast */
    int (*discard)(struct co *co, void *disk, uint64_t off, uint64_t len);
    int (*flush)(struct co *co, void *disk);      /* covers every write that was answered, on any connection */
    /* Costs NBD_STATUS_LOOKS looks at most: what holds for longer may be told in parts. */
    int (*status)(struct co *co, void *disk, uint64_t off, uint64_t len, struct nbd_disk_status *ret);
    /* Is the start of the range dirty in bitmap i, and for how long does that hold? NULL: no bitmaps. */
    int (*dirty)(struct co *co, void *disk, unsigned i, uint64_t off, uint64_t len, struct nbd_disk_status *ret);
};

struct graph_node;
extern const struct nbd_disk_ops nbd_graph_ops;   /* disk = struct graph_node * */
/* The same with dirty bitmaps, held while the export exists, so that they stay what they are; with a part of the disk; with writes that
 * are durable when they are answered. */
struct fmt_bitmap;
struct nbd_graph_disk {
    struct graph_node *node;
    struct fmt_bitmap *bitmaps[14];
    uint64_t offset, length;     /* the part that is shown; length 0: to the end */
    bool writethrough;
};
extern const struct nbd_disk_ops nbd_graph_bitmap_ops;   /* disk = struct nbd_graph_disk * */

/* ---- server ---- */

struct nbd_server;
struct nbd_export;
struct tls_creds;
struct tls_set;

struct nbd_server_opts {
    unsigned connections_max;        /* at the same time by one door; further ones are closed at once. 0 = no limit */
    unsigned handshake_ms;           /* whole handshake, that of TLS too; 0 = no limit */
    unsigned requests_max;           /* in flight per connection; 1..256 */
    uint64_t bytes_max;              /* buffers in flight per connection (one request may exceed it when it is alone) */
    unsigned stop_grace_ms;          /* nbd_server_stop answers "shutting down" for so long before it stops reading */
    unsigned linger_ms;              /* time for a client to take its last answers */
};
#define NBD_SERVER_OPTS_DEFAULT { 100, 10000, 256, UINT64_C(64) << 20, 100, 1000 }

/* ---- doors: where clients come in, and on which terms. All doors of a server lead to the same exports (FEATURES 10.024) ---- */
struct nbd_door;
struct nbd_door_opts {
    const char *id;                  /* unique among the doors; NULL: one that has no name */
    unsigned connections_max, handshake_ms;      /* as struct nbd_server_opts */
    struct tls_creds *creds;         /* of a server; NULL: no TLS. With them nothing is said to a client that does not speak TLS */
    const char *authz;               /* id of the rules that say who may come in, looked up when somebody comes; not there: nobody. NULL: everybody */
    struct tls_set *objects;         /* where `authz` is looked up; outlives the server */
};

/* opts NULL: defaults. Any thread. */
MUST_USE int nbd_server_new(struct rt_loop *home, const struct nbd_server_opts *opts, struct nbd_server **ret_s, struct byre_err *err);
/* Stopped, and every export removed (stop does both). NULL ok. */
void nbd_server_free(struct nbd_server *s);

/* The door that nbd_server_new has made, with the terms of its opts and no TLS. */
struct nbd_door *nbd_server_door(struct nbd_server *s);
/* One more. Strings are copied, creds counted. EXISTS: the id is taken; BAD_ARGUMENT: `authz` asks for names that `creds` do not prove. */
MUST_USE int nbd_door_new(struct nbd_server *s, const struct nbd_door_opts *o, struct nbd_door **ret_d, struct byre_err *err);
/* Closes it for good, with its listeners and connections, as nbd_server_stop does; d is gone. Suspends. */
void nbd_door_close(struct co *co, struct nbd_door *d);
struct nbd_door *nbd_door_find(struct nbd_server *s, const char *id);               /* NULL: none */
struct nbd_door *nbd_door_next(struct nbd_server *s, struct nbd_door *prev);        /* iterate; prev NULL: first */
struct nbd_door_info { const char *id, *creds, *authz; unsigned connections, connections_max; unsigned listeners; };
struct nbd_door_info nbd_door_get(const struct nbd_door *d);                        /* valid while d is */
/* Address of its listener number i, as "unix:PATH", "unix:@NAME" (abstract), "vsock:CID:PORT" or "HOST:PORT"; NULL: it has fewer. Owned by the caller, or no memory. */
char *nbd_door_address(const struct nbd_door *d, unsigned i);

/* A socket at the path that nobody listens on is replaced; anything else in the way is an error (EXISTS). The path is removed at stop; a name that is
 * in no folder goes by itself, and is open to everybody in the network namespace. Suspends. */
MUST_USE int nbd_server_listen_unix(struct co *co, struct nbd_door *d, const struct unix_addr *a, struct byre_err *err);
/* Of virtual machines: a context identifier, VMADDR_CID_ANY for all, and a port. NOT_SUPPORTED: this kernel has no such sockets. */
struct nbd_vsock_addr { uint32_t cid, port; };
MUST_USE int nbd_server_listen_vsock(struct co *co, struct nbd_door *d, const struct nbd_vsock_addr *a, struct byre_err *err);
/* host NULL or "": all addresses. port 0: a free one is picked. *ret_port = the port. Suspends. */
struct nbd_tcp_addr { const char *host; uint16_t port; };
MUST_USE int nbd_server_listen_tcp(struct co *co, struct nbd_door *d, const struct nbd_tcp_addr *addr, uint16_t *ret_port, struct byre_err *err);
/* A listening socket that was handed over; owned from now on, also on failure. */
MUST_USE int nbd_server_listen_fd(struct co *co, struct nbd_door *d, int fd, struct byre_err *err);

/* Stops accepting; requests in flight are finished and answered, later ones refused; closes all connections and
 * removes all exports. Takes at most stop_grace_ms + linger_ms plus the disk's own time. Suspends; idempotent. */
void nbd_server_stop(struct co *co, struct nbd_server *s);
unsigned nbd_server_connections(const struct nbd_server *s);
/* Who is told that a connection which used an export is gone, and how many are left: home loop, must not suspend. */
typedef void nbd_gone_fn(void *arg, unsigned left);
void nbd_server_watch(struct nbd_server *s, nbd_gone_fn *fn, void *arg);

/* ---- exports ---- */

struct nbd_export_opts {
    const char *name;                /* "" is served to clients that ask for no name. <= 4096 bytes of UTF-8 */
    const char *description;         /* or NULL */
    const struct nbd_disk_ops *ops;
    void *disk;                      /* must outlive the export */
    struct rt_loop *loop;            /* which serves its clients; NULL: none in particular */
    bool writable;
    bool is_default;                 /* also answers to the empty name */
    bool rotational;
    bool allocation_depth;           /* offer qemu:allocation-depth */
    uint32_t block_min;              /* 0 = 1 */
    uint32_t block_preferred;        /* 0 = 4096 */
    uint64_t block_max;              /* 0 = what the server takes; clients may be told more if this is odd or small */
    const char *const *bitmaps;      /* names for qemu:dirty-bitmap:NAME; index = i of ops->dirty */
    unsigned bitmap_count;           /* <= 14 */
};
/* Strings are copied. EXISTS: the name is taken. */
MUST_USE int nbd_server_add(struct nbd_server *s, const struct nbd_export_opts *o, struct nbd_export **ret_x, struct byre_err *err);
/* Removes and frees x; after that the disk is not touched any more. force: its connections are closed as by stop;
 * otherwise PERMISSION when a client uses it. Suspends. */
MUST_USE int nbd_server_remove(struct co *co, struct nbd_server *s, struct nbd_export *x, bool force, struct byre_err *err);
struct nbd_export *nbd_server_find(struct nbd_server *s, const char *name);       /* NULL: none */
struct nbd_export *nbd_server_next(struct nbd_server *s, struct nbd_export *prev); /* iterate; prev NULL: first */
const char *nbd_export_name(const struct nbd_export *x);
bool nbd_export_writable(const struct nbd_export *x);
unsigned nbd_export_users(const struct nbd_export *x);                            /* connections that use it */
/* Clients that come from now on are served by that loop; who is there stays where it is. NULL: by any. */
void nbd_export_serve_on(struct nbd_export *x, struct rt_loop *loop);
unsigned nbd_server_loop_users(const struct nbd_server *s, const struct rt_loop *loop);     /* clients whom it serves */

#endif
