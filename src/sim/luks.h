/* SPDX-License-Identifier: MIT
 *
 * luks.h: the encryption of the geometries with LUKS.
 */
#ifndef SIM_LUKS_H
#define SIM_LUKS_H

#include "fmt/luks/lk_cipher.h"
#include "fmt/secret.h"
#include "graph/graph.h"
#include "sim/disk.h"

#define SIM_LUKS_BYTES 2560u             /* header, the material of its one active key slot and of two more (1, 6) */
#define SIM_LUKS_SECRET "sim"            /* id of the passphrase in sim_luks_secrets() */
#define SIM_LUKS_SECOND "second"         /* of the one that workloads add */

void sim_luks_area(uint8_t area[SIM_LUKS_BYTES]);
/* The key of the data; the caller frees it. */
struct lk_xform *sim_luks_key(void);
struct secret_set *sim_luks_secrets(void);

/* ---- changes of key slots in the workloads. Programs that run them are linked with --wrap (src/sim/meson.build) ---- */
enum { SIM_KEY_FIRST = 1, SIM_KEY_SECOND = 2 };          /* which passphrases open it: a set */
/* What is to be done: 0 a slot for the second passphrase; 1 its slots are erased; 2 the first slot, the only active one, is written
 * anew for the same passphrase; 3 the slot whose entry lies in two sectors gets the second passphrase. */
#define SIM_KEY_CHANGES 4u
struct sim_key_change { unsigned from, to; };            /* sets: needed before; afterwards. On the way: either */
extern const struct sim_key_change sim_key_changes[SIM_KEY_CHANGES];
MUST_USE int sim_luks_change(struct co *co, struct graph_node *n, unsigned what, struct byre_err *err);
/* Salts and the like come from this from now on: one seed, one trace (RG10). */
void sim_luks_seed(uint64_t seed);
/* Which passphrases open the header in `d`: a set; -EUCLEAN: some active slot is opened by neither. *ret_first: slots that the first one opens. */
MUST_USE int sim_luks_look(struct co *co, struct stor *s, const struct sim_disk *d, unsigned *ret_first);

#endif
