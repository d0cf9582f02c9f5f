/* SPDX-License-Identifier: MIT
 *
 * nbd.h: a disk that an NBD server exports, as a byte store; the names of such disks; what a server offers.
 *
 * Invariants
 *   I1  A change that the server has acknowledged is never silently lost with a connection: it is repeated before anything else is
 *       asked of the new one, or the store fails from then on (nbd_set.c).
 *   I2  The length of the export does not change while the store is open: a server that comes back with another one is refused.
 * Concurrency  Opened and closed on one loop; requests from any loop. Connections live on the loops that use them.
 * Failure      A server that breaks the protocol loses its connection, as one that goes away.
 */
#ifndef STOR_NBD_H
#define STOR_NBD_H

#include "stor/stor.h"

struct tls_creds;
enum stor_nbd_where { STOR_NBD_UNIX, STOR_NBD_INET, STOR_NBD_VSOCK, STOR_NBD_FD };
enum stor_nbd_tri { STOR_NBD_UNSAID, STOR_NBD_OFF, STOR_NBD_ON };

/* Where the server is, and what is wanted of it. Strings are owned; stor_nbd_opts_fini frees them. */
struct stor_nbd_opts {
    enum stor_nbd_where where;
    char *path;                       /* unix */
    bool abstract, padded;            /* unix: a name in the abstract namespace; filled up with zeros */
    char *host, *port;                /* inet: names or numbers; vsock: numbers. port NULL: 10809 */
    char *fdname;                     /* fd: a connection that somebody passed (passed_socket_offer). There is one, which does not come back */
    struct fdsets *passed;            /* where it is; set by who opens the store, until that is done. NULL: nowhere (any more) */
    enum stor_nbd_tri ipv4, ipv6;     /* inet: as the peer has them */
    bool keep_alive;                  /* inet */
    char *export;                     /* NULL: "", the default export */
    uint64_t reconnect_s;             /* reconnect-delay: how long requests wait for a server that went away */
    uint64_t open_timeout_s;          /* open-timeout: for how long opening tries again; 0: once */
    char *tls_creds;                  /* id of credentials of the side that connects; NULL: no TLS */
    char *tls_hostname;               /* name in the server's certificate; NULL: host */
    struct stor_nbd_uri_tls *tls;     /* what a URI says of TLS (nbds://); NULL: nothing */
    struct tls_creds *creds;          /* what tls_creds or tls mean, counted: set by whoever asks for a connection (stor_nbd_take_creds) */
    char *x_dirty_bitmap;             /* a meta context whose extents a map shows instead of what is allocated; NULL: none */
    uint64_t connections;             /* at most, if the server allows several; 0: STOR_NBD_CONNECTIONS */
};
/* Of certificates, or of keys that both sides know; strings NULL: what is usual. */
struct stor_nbd_uri_tls { char *dir, *psk_file, *username; bool no_verify; };
#define STOR_NBD_CONNECTIONS 4
#define STOR_NBD_CONNECTIONS_MAX 16
void stor_nbd_opts_fini(struct stor_nbd_opts *o);
MUST_USE int stor_nbd_opts_copy(const struct stor_nbd_opts *from, struct stor_nbd_opts *ret);

/* ---- names (nbd_name.c): pure ---- */
/* Reads a URI (nbd://, nbd+tcp://, nbd+unix://, nbd+vsock://, and nbds with TLS) or the old form nbd:HOST:PORT[:exportname=NAME], nbd:unix:PATH[:...]. */
MUST_USE int stor_nbd_parse(const char *text, struct stor_nbd_opts *ret, struct byre_err *err);
/* Does the text begin with the name of one of these protocols and a colon? */
bool stor_nbd_is_name(const char *text);
/* The URI of what o describes; its connections and times are not part of it. That of a passed connection (nbd+fd://NAME/EXPORT) says what it is, and
 * cannot be read back. Owned by the caller; NULL: no memory. */
char *stor_nbd_text(const struct stor_nbd_opts *o);
/* Options that fit together? Sets nothing. */
MUST_USE int stor_nbd_check(const struct stor_nbd_opts *o, struct byre_err *err);

struct tls_set;
/* Looks o->tls_creds up, or reads what o->tls names. 0 too when there is nothing of them. Suspends. */
MUST_USE int stor_nbd_take_creds(struct co *co, struct stor_nbd_opts *o, struct tls_set *set, struct byre_err *err);
/* Does the name make this program read other files than the disk (keys, certificates)? Names inside images must not. */
bool stor_nbd_names_files(const struct stor_nbd_opts *o);

/* ---- the store ---- */
/* Of `so` counts: read_only, no_flush, discard. What is created must be there already: an export is not made here. Suspends. */
MUST_USE int stor_nbd_open(struct co *co, const struct stor_nbd_opts *o, const struct stor_file_opts *so, struct stor **ret_s, struct byre_err *err);
/* Identity for loop detection, as stor_file_identity: the same server under the same name, and the same export. Of a passed connection there is none. */
bool stor_nbd_identity(const struct stor *s, uint64_t *ret_a, uint64_t *ret_b);
bool stor_is_nbd(const struct stor *s);
/* Requests that wait for the server end now, with -ENOTCONN; their buffers are not looked at any more. The connections end with them, so it is as if the
 * server had gone away. Nothing for other stores. Any loop; does not suspend. */
void stor_nbd_abandon(struct stor *s);
/* What the server said last of a request that it refused (NBD's text of an error, and the offset that it is about): where its number was `error`, or
 * (0) any, and it came at since_ns or later (rt_now): when the request began whose error is to be explained. false: it said nothing. Any thread. */
#define STOR_NBD_COMPLAINT_MAX 400
bool stor_nbd_complaint(struct stor *s, int error, uint64_t since_ns, char ret[STOR_NBD_COMPLAINT_MAX]);
/* From now on requests are given up like that, and those that come behind, when there is one and no answer to any of them has come for that long. 0: not any
 * more. Nothing for other stores. On the loop that opened it. */
void stor_nbd_hurry(struct stor *s, uint64_t ns);
/* How often a lost connection has come back. For tests and statistics. */
unsigned stor_nbd_reconnects(const struct stor *s);

/* ---- what a server offers (nbd_list.c) ---- */
struct stor_nbd_export {
    char *name, *description;         /* description: NULL if there is none */
    bool known;                       /* the server told what follows; else `why` says why not */
    uint64_t size;
    bool read_only, can_flush, can_fua, can_trim, can_zero, can_fast_zero, can_multi_conn, can_cache, can_df, rotational;
    uint64_t min_block, opt_block, max_block;          /* 0: not told */
    char **contexts;                  /* meta contexts */
    unsigned context_count;
    char *why;
};
struct stor_nbd_list { struct stor_nbd_export *exports; unsigned count; bool structured; };
/* Asks the server at o (its export does not matter) for its exports, with their meta contexts; o->creds are there when it wants TLS. Suspends. */
MUST_USE int stor_nbd_list(struct co *co, const struct stor_nbd_opts *o, struct stor_nbd_list *ret, struct byre_err *err);
void stor_nbd_list_fini(struct stor_nbd_list *l);

#endif
