/* SPDX-License-Identifier: MIT
 *
 * seen.h: a set of 128-bit keys in memory that forked processes share.
 */
#ifndef SIM_SEEN_H
#define SIM_SEEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"

struct sim_seen;

/* Room for 2^bits keys; at three quarters it is full and answers "seen" to everything new. Shared with processes forked later. */
struct sim_seen *sim_seen_new(unsigned bits);
void sim_seen_free(struct sim_seen *s);
/* Was it new? It is in the set now. Any process. */
bool sim_seen_add(struct sim_seen *s, struct hash128 key);
uint64_t sim_seen_count(const struct sim_seen *s);

#endif
