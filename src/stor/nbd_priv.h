/* SPDX-License-Identifier: MIT
 *
 * nbd_priv.h: the inside of the NBD client. Private to stor/nbd*.c.
 *
 *   nbd_name.c   what names mean
 *   nbd_lib.c    libnbd itself, loaded when it is first needed
 *   nbd_dial.c   sockets to servers
 *   nbd_tls.c    TLS, in front of libnbd
 *   nbd_creds.c  what a client proves itself with
 *   nbd_conn.c   one connection: libnbd's handle, driven by a loop
 *   nbd_told.c   what a server says of a request that it refuses
 *   nbd_set.c    the connections of a store: who takes a request, loss and return
 *   nbd_log.c    what the server has acknowledged and not yet made durable
 *   nbd_ops.c    the store
 *   nbd_list.c   what a server offers
 *
 * Concurrency  Any loop, unless a file says less: a connection is its loop's, the manager of a store is the home loop's. Mutexes are held for list work
 *              alone, never over a suspension.
 */
#ifndef STOR_NBD_PRIV_H
#define STOR_NBD_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "proto/nbd/nbd_complaint.h"
#include "rt/loop.h"
#include "rt/sync.h"
#include "stor/nbd.h"
#include "stor/nbd_lib.h"

#define NBDC_LOST 1                       /* of a request: its connection ended before the answer came */
#define NBDC_HANDSHAKE_NS UINT64_C(30000000000)
#define NBDC_GROW_NS UINT64_C(5000000000) /* the same for a connection that is not needed */
#define NBDC_GROW_AT 4                    /* requests of one connection from which on another one is worth it */
#define NBDC_LEN_MAX (32u << 20)          /* of a transfer, whatever the server would take */
#define NBDC_SPAN_MAX (1u << 30)          /* of a request without data */
#define NBDC_LOG_BYTES (16u << 20)        /* kept for repetition before a flush is asked for */
#define NBDC_NOTES_MAX 32u                /* extents of a second context in one answer; what follows is asked for again */

/* ---- one request: in the frame of its coroutine ---- */
enum nbdc_what { NBDC_READ, NBDC_WRITE, NBDC_FLUSH, NBDC_ZERO, NBDC_TRIM, NBDC_STATUS };

struct nbdc_entry;
struct nbdc_note { uint64_t end; unsigned what; };       /* up to there: STOR_NOTE_x */

struct nbdc_req {
    enum nbdc_what what;
    uint32_t flags;                       /* LIBNBD_CMD_FLAG_x */
    uint64_t off, len;
    void *buf;                            /* READ, WRITE */
    struct stor_extent *list;             /* STATUS */
    unsigned max, got;
    const char *note;                     /* STATUS: a second context that is asked for; NULL: none */
    struct nbdc_note *notes;              /* NBDC_NOTES_MAX of them */
    unsigned noted;
    uint64_t upto;                        /* FLUSH: covers what the log held up to here */
    struct nbdc_entry *entry;             /* what changes: its place in the log; NULL: none is kept */
    bool repeated;                        /* by nbdc_log_repeat: is in the log already */
    bool own;                             /* FLUSH: for the sake of what the log keeps; if the server refuses it, that is given up */
    int result;                           /* 0, -errno or NBDC_LOST */
    /* private to the connection */
    struct rt_msg msg;
    struct nbdc_conn *conn;
    struct list_node link;
    int64_t cookie;                       /* libnbd's number of it, which is the one on the wire */
    struct nbdp_complaint *said;          /* what the server says of it; NULL: nothing was heard */
    int error;
    bool ended;
    struct co_xevent done;
};

/* ---- nbd_dial.c ---- */
/* A connected socket, non-blocking; the deadline of the coroutine holds. Suspends. */
MUST_USE int nbdc_dial(struct co *co, const struct stor_nbd_opts *o, int *ret_fd, struct byre_err *err);
/* "localhost:10809", "/run/x.sock": for messages. Owned by the caller; may be NULL. */
char *nbdc_peer(const struct stor_nbd_opts *o);

/* ---- nbd_tls.c ---- */
struct nbdc_tls;
/* Speaks TLS with o->creds over sock (taken over); *ret_far is for libnbd, which needs not know. Deadline and cancellation hold. Suspends. */
MUST_USE int nbdc_tls_begin(struct co *co, const struct stor_nbd_opts *o, int sock, int *ret_far, struct nbdc_tls **ret_c, struct byre_err *err);
/* The far end is closed. Any loop; suspends. NULL ok. */
void nbdc_tls_stop(struct co *co, struct nbdc_tls *c);

/* ---- nbd_conn.c ---- */
/* Dials o, with TLS where it is wanted, and gives the socket to h. Then h is closed by nbdc_close, whatever came of it. Suspends. */
MUST_USE int nbdc_connect(struct co *co, const struct stor_nbd_opts *o, struct nbd_handle *h, struct byre_err *err);
void nbdc_close(struct co *co, struct nbd_handle *h);            /* suspends */
struct nbdc_info {
    uint64_t size, min_block, opt_block, max_block;
    bool read_only, can_flush, can_fua, can_trim, can_zero, can_fast_zero, can_multi, has_status;
};

struct nbdc;

struct nbdc_conn {
    struct nbdc *set;
    struct rt_loop *loop;                 /* all below: this loop's */
    struct nbd_handle *h;
    int fd;
    bool dead, started, structured;
    struct rt_task reader, writer;
    struct co_waitq want_write;
    struct list sent, ended;              /* nbdc_req.link */
    _Atomic unsigned load;                /* requests that were given to it */
};

/* Connects and negotiates before at_ns, on the calling loop. Suspends. */
MUST_USE int nbdc_handshake(struct co *co, const struct stor_nbd_opts *o, uint64_t at_ns, struct nbd_handle **ret_h, struct nbdc_info *ret_info, struct byre_err *err);
/* Lets the handle make progress as the socket allows, once. The coroutine's deadline and cancellation hold. */
MUST_USE int nbdc_step(struct co *co, struct nbd_handle *h);
/* What libnbd says of the failure of the call just made, without its own function names. */
const char *nbdc_why(void);
/* A connection on `loop`, running. Takes h over, also when it fails. Suspends. */
MUST_USE int nbdc_conn_new(struct co *co, struct nbdc *set, struct rt_loop *loop, struct nbd_handle *h, struct nbdc_conn **ret_c);
/* Ends all requests of c with NBDC_LOST and lets go of the server, politely if it can hear. Any loop; suspends. Twice is harmless. */
void nbdc_conn_stop(struct co *co, struct nbdc_conn *c);
/* Stopped, and no longer to be found: waits for those who found it before. */
void nbdc_conn_free(struct co *co, struct nbdc_conn *c);
/* Sends r by c and waits for the answer, which is r->result. Any loop; suspends. c->load counts r already. */
void nbdc_conn_do(struct co *co, struct nbdc_conn *c, struct nbdc_req *r);

/* ---- nbd_told.c ---- */
/* r->said is what was said of r, which failed with r->error. Any loop. */
void nbdc_complaint_tell(struct nbdc *n, const struct nbdc_req *r, uint64_t now);

/* ---- nbd_log.c: any loop ---- */
struct nbdc_log {
    pthread_mutex_t lock;
    bool is_volatile;                     /* constant: the server has something to flush */
    bool keeps;                           /* constant: contents are kept, for repetition */
    struct list entries;                  /* guarded by lock; by seq */
    uint64_t bytes;                       /* guarded by lock */
    uint64_t acked, durable;              /* guarded by lock: seq of the last acknowledged change; of the last that a flush covered */
    uint64_t gap;                         /* guarded by lock: seq of the last change of which nothing was kept */
    uint64_t repeated_ns;                 /* home loop only: when repetition began, or its last answer came */
};
void nbdc_log_init(struct nbdc_log *l, bool is_volatile, bool keeps);
void nbdc_log_fini(struct nbdc_log *l);
/* Before a change is sent. No memory: it is counted only. */
void nbdc_log_prepare(struct nbdc_log *l, struct nbdc_req *r);
/* The answer is there (not NBDC_LOST). On the loop of the connection, before its loss is told. */
void nbdc_log_ended(struct nbdc_log *l, struct nbdc_req *r);
void nbdc_log_drop(struct nbdc_log *l, struct nbdc_req *r);      /* the request was given up */
uint64_t nbdc_log_acked(struct nbdc_log *l);
bool nbdc_log_is_full(struct nbdc_log *l);
enum nbdc_loss { NBDC_NOTHING, NBDC_REPEATABLE, NBDC_FOR_GOOD };
/* What goes with a connection that ends now? */
enum nbdc_loss nbdc_log_loss(struct nbdc_log *l);
/* Does everything that was kept again, through c, and a flush. 0, NBDC_LOST, or the server's -errno. */
MUST_USE int nbdc_log_repeat(struct co *co, struct nbdc_log *l, struct nbdc_conn *c);

/* ---- nbd_set.c ---- */
enum nbdc_state {
    NBDC_UP,
    NBDC_WAIT,                            /* lost; requests wait */
    NBDC_FAIL,                            /* lost for longer than reconnect-delay: requests fail until it is back */
    NBDC_BROKEN,                          /* for ever */
};

struct nbdc_waiter;

struct nbdc {
    struct stor s;                        /* first */
    struct stor_nbd_opts o;
    struct nbdc_info info;
    struct nbdc_log log;
    struct rt_loop *home;
    _Atomic unsigned returns;
    _Atomic unsigned abandoned;           /* how often: requests that are older end */
    _Atomic unsigned inside;              /* requests that have not ended */
    _Atomic uint64_t answers;             /* of the server */
    _Atomic bool given_up;                /* whoever asks gets -ENOTCONN (nbdc_hurry) */
    _Atomic bool small_spans;             /* the server refused a long range once */
    pthread_mutex_t lock;
    enum nbdc_state state;                /* guarded by lock, as all up to `lost` */
    struct nbdc_conn *conn[STOR_NBD_CONNECTIONS_MAX];
    unsigned conns, conns_max;
    struct nbdc_waiter *waiters;
    struct rt_loop *grow_on;              /* another connection is wanted there; NULL: none is */
    bool lost;                            /* for the manager */
    /* guarded by lock: the last complaint, its own words, its error and when it came, and when one was told */
    char complaint[STOR_NBD_COMPLAINT_MAX], complaint_words[NBDP_COMPLAINT_TEXT_MAX];
    int complaint_error;
    uint64_t complaint_ns, complained_ns; unsigned complaints_new;
    void (*warn)(void *arg, const char *text);       /* constant, as its argument; NULL: nobody listens */
    void *warn_arg;
    /* home loop only */
    struct rt_task manager, grower;
    bool growing, closing;
    struct co_waitq wake;
    struct nbdc_conn *fresh;              /* being tried */
    struct rt_timer patience;
    struct rt_timer hurry;                /* nbdc_hurry: looks HURRY_LOOKS times */
    uint64_t hurry_ns, hurry_seen;        /* 0: nobody is in a hurry; answers when it looked last */
    unsigned hurry_idle;                  /* how often it has seen nothing come */
    struct rt_msg kick;
    _Atomic bool kicked;
};
static inline struct nbdc *nbdc_of(struct stor *s) { return (struct nbdc *)s; }

/* The first connection stands (h, taken over); from now on requests are let in. Home. */
MUST_USE int nbdc_set_start(struct co *co, struct nbdc *n, struct nbd_handle *h);
void nbdc_set_stop(struct co *co, struct nbdc *n);               /* nobody asks any more; home */
/* Does r, whatever connections come and go meanwhile. 0 or -errno. Any loop; suspends. */
MUST_USE int nbdc_do(struct co *co, struct nbdc *n, struct nbdc_req *r);
/* A connection has ended by itself. Its own loop. */
void nbdc_set_lost(struct nbdc *n);
/* Whoever waits for the server waits no longer. Any loop. */
void nbdc_abandon(struct nbdc *n);
/* As stor_nbd_hurry. Home. */
void nbdc_hurry(struct nbdc *n, uint64_t ns);

#endif
