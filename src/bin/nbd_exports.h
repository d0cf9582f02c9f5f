/* SPDX-License-Identifier: MIT
 *
 * nbd_exports.h: byre nbd --list.
 */
#ifndef BIN_NBD_EXPORTS_H
#define BIN_NBD_EXPORTS_H

#include "bin/bin.h"

/* Prints what the server at the socket, or (NULL) at host (NULL: this one) and port, offers. The exit code. */
int nbd_exports_print(struct run *r, const char *socket, const char *host, unsigned port);

#endif
