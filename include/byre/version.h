/* SPDX-License-Identifier: MIT
 *
 * version.h: which libbyre is this?
 */
#ifndef BYRE_VERSION_H
#define BYRE_VERSION_H

#include "byre/base.h"

#define BYRE_VERSION_MAJOR 0
#define BYRE_VERSION_MINOR 1
#define BYRE_VERSION_MICRO 0
#define BYRE_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the library that runs ("0.1.0"), static storage. BYRE_VERSION is the one compiled against. */
BYRE_EXPORT const char *byre_version(void);
/* Name of the n-th image format ("raw", "qcow2"), NULL behind the last. */
BYRE_EXPORT const char *byre_format_name(unsigned n);

#ifdef __cplusplus
}
#endif
#endif
