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

enum { BYRE_EXPORT_READ_ONLY = 1u << 0, BYRE_EXPORT_NOT_DEFAULT = 1u << 1 /* only under its name, not as the default export */ };

struct byre_nbd_opts {
    size_t struct_size;
    unsigned flags;              /* BYRE_EXPORT_* */
    const char *address;         /* "unix:/absolute/path", "HOST:PORT", "[V6]:PORT"; PORT 0: a free one */
    const char *name;            /* export name; NULL: "" */
    const char *description;     /* NULL: none */
    unsigned max_clients;        /* 0: default (100) */
    unsigned handshake_seconds;  /* 0: default (10) */
    unsigned stop_grace_ms;      /* how long byre_export_stop answers "shutting down" before it stops reading; 0: default (100) */
    const char *const *bitmaps; unsigned bitmap_count;      /* at most 14 names */
};
/* bitmaps: dirty bitmaps offered as contexts qemu:dirty-bitmap:NAME, of the image or, where it has none of that name, of the
 * nearest image below; nobody may change them while the export exists. */
BYRE_DEFINE_INIT(byre_nbd_opts)

/* Listens and serves the image over NBD until byre_export_stop. */
BYRE_EXPORT BYRE_MUST_USE int byre_export_nbd(struct byre_image *image, const struct byre_nbd_opts *opts, struct byre_export **ret_export, struct byre_err *err);
/* "nbd+unix:///disk0?socket=/path" or "nbd://host:port/disk0"; valid until byre_export_stop. */
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
