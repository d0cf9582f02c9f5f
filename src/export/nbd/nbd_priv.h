/* SPDX-License-Identifier: MIT
 *
 * nbd_priv.h: objects of the NBD server and who may touch what. Private to this folder.
 *
 * Concurrency
 *     server   home loop only: exports, listeners, list of connections
 *     conn     the part named "home" on the home loop, the rest on the connection's own loop
 *     req      one request in flight, the connection's loop
 */
#ifndef EXPORT_NBD_PRIV_H
#define EXPORT_NBD_PRIV_H

#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/assert.h"
#include "base/list.h"
#include "export/nbd/nbd.h"
#include "proto/nbd/nbd_codec.h"
#include "rt/co.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "rt/sync.h"
#include "tls/session.h"

#define NBD_BITMAPS_MAX (NBDP_CONTEXTS_MAX - 2)
#define NBD_SEND_IOV 128u            /* buffers gathered in one send */
#define NBD_SEND_IOV_WAITED 8u        /* the same for answers that a device was waited for */
#define NBD_TURNS_AT_ONCE 2u          /* its coroutine begins in the turn after its arrival, and has what the kernel had in the one after that */
#define NBD_CHUNKS_MAX 16u           /* chunks in the reply to one READ */
#define NBD_SMALL_BUF (64u << 10)    /* READs up to this size are not cut at holes */
#define NBD_BUF_CLASSES 10           /* buffers of 4 KiB << k are kept for reuse */
#define NBD_WIDE_READ (128u << 10)   /* answers longer than this are worth a wide socket */
#define NBD_KEEP_BYTES (8u << 20)    /* ... up to so many bytes per connection */
#define NBD_KEEP_IDLE_BYTES (2u << 20)   /* ... while nothing is in flight */

struct nbd_export {
    struct list_node link;
    uint64_t serial;
    char *name, *description;
    const struct nbd_disk_ops *ops;
    void *disk;
    bool writable, is_default, rotational, removed;
    uint32_t block_min, block_preferred, block_max;
    char *ctx[NBDP_CONTEXTS_MAX];
    unsigned ctx_count;
    unsigned users;                  /* connections that hold it; home loop */
    struct rt_loop *loop;            /* its clients are served there; NULL: anywhere. Home loop */
};

/* Home loop; constant but for its counts, and not freed before its last connection: that reads it from its own loop. */
struct nbd_door {
    struct list_node link;
    struct nbd_server *server;
    char *id, *authz;
    unsigned connections_max, handshake_ms, n_conns;
    struct tls_creds *creds;
    struct tls_set *objects;
    bool closing;
};

struct nbd_listener {
    struct list_node link;
    struct nbd_door *door;
    int fd;
    char *path;                      /* unix socket, as it was given, or NULL */
    char *real;                      /* the same from the root, to remove at stop */
    struct stat path_id;             /* what it was when we made it */
    struct rt_task task;             /* accepts */
};

struct nbd_server {
    struct rt_loop *home;
    struct nbd_server_opts opts;
    struct list exports, listeners, conns, doors;
    struct nbd_door *front;
    uint64_t last_serial;
    unsigned n_conns, n_listeners;
    unsigned *per_loop;              /* connections on each loop, by its index */
    bool stopping;
    struct co_waitq changed;         /* woken when a connection has gone */
    nbd_gone_fn *gone;
    void *gone_arg;
};

/* ---- one connection ---- */

struct nbd_part { struct nbdp_head head; void *data; uint32_t data_len; };

/* A request from its header to the last byte of its answer. */
struct nbd_req {
    struct list_node link;           /* in conn->to_send or conn->spare */
    struct nbd_conn *conn;
    struct nbdp_request r;
    void *buf;                       /* payload of a WRITE, data of a READ, descriptors of a status */
    uint32_t buf_len;
    uint64_t turn;                   /* of the loop, when it came */
    bool waited;                     /* answered later than NBD_TURNS_AT_ONCE behind that: for a device, most likely */
    uint64_t charged;                /* bytes counted against bytes_max */
    struct nbd_part first, *parts;   /* the answer: parts points to first or to an array of its own */
    unsigned n_parts;
};

struct nbd_buf { struct nbd_buf *next; };      /* a kept buffer, linked through its first bytes */

struct nbd_conn {
    /* home loop */
    struct nbd_server *server;
    struct nbd_door *door;
    struct list_node link;
    bool stop_posted, stop_acked, gone_seen;
    struct rt_msg stop_msg, ack_msg, gone_msg;       /* gone_msg: its coroutines have ended, for good or for a move */
    struct nbd_export *x;            /* held; changed by the home loop on behalf of the connection */
    struct rt_loop *wanted;          /* where x is served, when it was found; NULL: anywhere */
    /* connection's loop */
    struct rt_loop *loop;            /* changed by the home loop between two lives of the coroutines */
    int fd;
    struct tls_session *tls;         /* NULL: plain, or not yet */
    struct nbdp *p;
    struct rt_task reader;
    struct nbd_req *receiving;       /* its payload is on the way */
    bool stopping, reader_done;
    bool moving;                     /* the coroutines end to begin again on the loop `wanted` */
    bool broken;                     /* sending failed: answers are dropped */
    bool wide;                       /* nbd_conn_widen has been here */
    bool sender_quit, sender_done;
    unsigned inflight;               /* requests from header to answer sent */
    unsigned executing;              /* those of them that have no answer yet */
    uint64_t inflight_bytes, sent_bytes;
    struct list to_send, spare;
    struct nbd_buf *kept[NBD_BUF_CLASSES];
    uint32_t kept_bytes;
    struct co_waitq changed;         /* the supervisor sleeps here */
    struct co_waitq room;            /* the reader: fewer requests or bytes in flight */
    struct co_waitq sendq;           /* the sender: something to send, or quit */
    struct iovec iov[NBD_SEND_IOV];
};

/* nbd_server.c */
void nbd_conn_start(struct nbd_door *d, int fd);     /* takes fd; home loop. No memory: the client is refused, others live on */
int nbd_conn_find_export(struct co *co, struct nbd_conn *c, const char *name, size_t len);   /* sets c->x; any loop; -ENOENT */
void nbd_listener_free(struct nbd_listener *l);
void nbd_listener_stop(struct co *co, struct nbd_listener *l);
/* Asks the connections of x, of d (NULL: of all) to finish. */
void nbd_conns_stop(struct nbd_server *s, const struct nbd_export *x, const struct nbd_door *d);
/* nbd_door.c */
void nbd_door_forget(struct nbd_door *d);      /* no listener and no connection is left. NULL ok */
/* nbd_tls.c */
MUST_USE int nbd_conn_starttls(struct co *co, struct nbd_conn *c);     /* then c->tls; on failure the connection is over */
/* nbd_conn.c */
co_fn nbd_conn_main;
void nbd_conn_stop_msg(struct rt_msg *m);      /* on the connection's loop */
void nbd_conn_gone_msg(struct rt_msg *m);      /* home loop */
void nbd_conn_fini(struct nbd_conn *c);        /* of the parts that nbd_conn_main has made; its coroutines have ended. Any loop */
void nbd_conn_ack_msg(struct rt_msg *m);       /* home loop */
/* nbd_send.c */
co_fn nbd_sender_main;
void nbd_conn_widen(struct nbd_conn *c);       /* before the answer to a long READ */
void nbd_conn_shut(struct nbd_conn *c);        /* no more bytes in either direction; answers are dropped from now on */
struct nbd_req *nbd_req_new(struct nbd_conn *c, const struct nbdp_request *r);    /* in flight from now on. NULL: no memory */
void nbd_req_free(struct nbd_req *q);          /* without an answer, or after it was sent */
void nbd_req_answer(struct nbd_req *q);        /* parts are filled: hands q to the sender */
void nbd_req_answer_error(struct nbd_req *q, enum nbd_error e, const char *why);
/* As rt_recv and rt_sendmsg. */
static inline int64_t nbd_conn_recv(struct co *co, struct nbd_conn *c, void *buf, size_t len)
{
    return c->tls ? tls_recv(co, c->tls, buf, len) : rt_recv(co, c->fd, buf, len);
}
static inline int64_t nbd_conn_sendv(struct co *co, struct nbd_conn *c, struct iovec *iov, unsigned cnt)
{
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = cnt };
    return c->tls ? tls_sendmsg(co, c->tls, iov, cnt) : rt_sendmsg(co, c->fd, &m);
}
void *nbd_buf_get(struct nbd_conn *c, uint32_t len);      /* aligned to 4096. NULL: no memory */
void nbd_buf_put(struct nbd_conn *c, void *buf, uint32_t len);
void nbd_conn_free_pools(struct nbd_conn *c);
/* nbd_exec.c */
co_fn nbd_req_main;                            /* arg: struct nbd_req; executes and answers */
uint64_t nbd_req_cost(const struct nbdp_request *r);      /* bytes of buffers that it will need */

#endif
