/* SPDX-License-Identifier: MIT
 *
 * cx_snapshot.h: internal snapshots and bitmaps, read from the file by a reader of its own.
 */
#ifndef CX_SNAPSHOT_H
#define CX_SNAPSHOT_H

#include "cx_world.h"

/* A digest of a snapshot's guest bytes; UINT64_MAX: it cannot be read. */
struct cx_snap { char name[16]; uint64_t digest; };
#define CX_SNAPS_MAX 4u
/* The snapshots of an image; how many. UINT_MAX: the table cannot be read, or there are more. */
unsigned cx_snapshots(const struct cx_bytes *image, struct cx_snap list[CX_SNAPS_MAX]);
/* The digest that a snapshot of the disk would have now; everything is in the file. */
uint64_t cx_disk_digest(const struct cx_bytes *image);
/* Would another program trust a persistent bitmap of this image: autoclear bit set, and an entry not marked in use? */
bool cx_bitmaps_trusted(const struct cx_bytes *image);

#endif
