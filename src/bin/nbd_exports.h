/* SPDX-License-Identifier: MIT
 *
 * nbd_exports.h: byre nbd --list.
 */
#ifndef BIN_NBD_EXPORTS_H
#define BIN_NBD_EXPORTS_H

#include "bin/bin.h"

/* Where a server is: at the socket, or (NULL) at host (NULL: this one) and port; tls_creds, tls_hostname NULL: none. */
struct nbd_exports_of { const char *socket, *host; unsigned port; const char *tls_creds, *tls_hostname; };
/* Prints what it offers. The exit code. */
int nbd_exports_print(struct run *r, const struct nbd_exports_of *of);

#endif
