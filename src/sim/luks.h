/* SPDX-License-Identifier: MIT
 *
 * luks.h: the encryption of the geometries with LUKS.
 */
#ifndef SIM_LUKS_H
#define SIM_LUKS_H

#include "fmt/luks/lk_cipher.h"
#include "fmt/secret.h"

#define SIM_LUKS_BYTES 1536u             /* header and its one key slot */
#define SIM_LUKS_SECRET "sim"            /* id of the passphrase in sim_luks_secrets() */

void sim_luks_area(uint8_t area[SIM_LUKS_BYTES]);
/* The key of the data; the caller frees it. */
struct lk_xform *sim_luks_key(void);
struct secret_set *sim_luks_secrets(void);

#endif
