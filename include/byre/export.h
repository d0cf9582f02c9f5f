/* SPDX-License-Identifier: MIT
 *
 * export.h: offering an image to other programs.
 */
#ifndef BYRE_EXPORT_H
#define BYRE_EXPORT_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BYRE_EXPORT_READ_ONLY = 1u << 0, BYRE_EXPORT_NOT_DEFAULT = 1u << 1 /* only under its name, not as the default export */,
       BYRE_EXPORT_NO_DEPTH = 1u << 2 /* no context qemu:allocation-depth */, BYRE_EXPORT_UNLIMITED = 1u << 3 /* any number of clients */,
       BYRE_EXPORT_PATIENT = 1u << 4 /* no limit to the time of a handshake */ };

struct byre_nbd_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_EXPORT_* */
    const char *address;         /* "unix:/absolute/path", "HOST:PORT", "[IPV6]:PORT"; PORT 0: a free one */
    const char *name;            /* export name; NULL: "" */
    const char *description;     /* NULL: none */
    unsigned max_clients;        /* 0: default (100) */
    unsigned handshake_seconds;  /* 0: default (10) */
    unsigned stop_grace_ms;      /* how long byre_export_stop answers "shutting down" before it stops reading; 0: default (100) */
    const char *const *bitmaps; unsigned bitmap_count;      /* at most 14 names */
    uint64_t offset;             /* the export begins there */
    int listen_fd;               /* > 0: a listening socket, instead of an address; owned from then on, also on failure */
    /* A client that used the export is gone, so many are left. Called on a thread of the library, must not block. NULL: nobody is told */
    void (*client_gone)(void *arg, unsigned left); void *client_gone_arg;
    const char *tls_creds;       /* id of credentials (byre_object_add) of the side that listens: clients must speak TLS. NULL: none does */
    const char *tls_authz;       /* id of rules about who of those may connect, looked up for each; not there: nobody. NULL: everybody */
    const char *selinux_label;   /* security label of the socket at a "unix:" address; NULL: the usual one */
};
/* bitmaps: dirty bitmaps offered as contexts qemu:dirty-bitmap:NAME, of the image or, where it has none of that name, of the
 * nearest image below; nobody may change them while the export exists. */
BYRE_DEFINE_INIT(byre_nbd_opts)

/* Listens and serves the image over NBD until byre_export_stop. */
BYRE_EXPORT BYRE_MUST_USE int byre_export_nbd(struct byre_image *image, const struct byre_nbd_opts *opts, struct byre_export **ret_export, struct byre_err *err);
/* "nbd+unix:///disk0?socket=/path" or "nbd://host:port/disk0", with TLS "nbds+unix:" and "nbds:"; valid until byre_export_stop. */
BYRE_EXPORT const char *byre_export_uri(const struct byre_export *e);
/* Lets no new client in, finishes and answers what is in flight, closes all connections and frees. A second or two at
 * most, plus what the disk takes. NULL is allowed. */
BYRE_EXPORT void byre_export_stop(struct byre_export *e);
/* Connections at this moment. */
BYRE_EXPORT unsigned byre_export_clients(struct byre_export *e);

#ifdef __cplusplus
}
#endif
#endif
