/* SPDX-License-Identifier: MIT
 *
 * cx_snapshot.h: internal snapshots and bitmaps, read from the file by a reader of its own.
 */
#ifndef CX_SNAPSHOT_H
#define CX_SNAPSHOT_H

#include "cx_world.h"

/* A digest of every snapshot's guest bytes. 0: no snapshots. UINT64_MAX: a snapshot cannot be read. */
uint64_t cx_snapshots_digest(const struct cx_bytes *image);
/* Would another program trust a persistent bitmap of this image: autoclear bit set, and an entry not marked in use? */
bool cx_bitmaps_trusted(const struct cx_bytes *image);

#endif
