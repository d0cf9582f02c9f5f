/* SPDX-License-Identifier: MIT
 *
 * pam.h: the account rules of a service of PAM (FEATURES 3.074); the library is loaded when the first such rules are made. Private to src/tls.
 */
#ifndef TLS_PAM_H
#define TLS_PAM_H

#include <stdbool.h>

#include "base/err.h"

/* Blocks: reads files. NOT_SUPPORTED: there is no PAM here. */
MUST_USE int pam_lib_load(struct byre_err *err);
/* Is the user's account good for this service? Behind pam_lib_load. Blocks, for as long as the modules of the service do; any threads at the same time. */
bool pam_allows(const char *service, const char *user);

#endif
