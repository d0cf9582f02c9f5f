/* SPDX-License-Identifier: MIT
 *
 * disk.h: the bytes of one simulated file, with an undo log and an incremental 128-bit hash, so that thousands
 * of crash states can be made and taken back at a cost that follows the difference and not the file.
 *
 * Invariants
 *   I1  Every byte at or behind `len` is zero.
 *   I2  While hashing is on, `sum` is the xor of hash[i] over all sectors and of the hash of the length; a sector of
 *       zeros hashes to zero.
 * Concurrency  One thread.
 */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hash.h"

#define SIM_SECTOR 512u
#define SIM_DISK_MAX (64u << 20)         /* a simulated file never grows past this: -EFBIG */

struct sim_undo;

struct sim_disk {
    uint8_t *data;
    uint64_t len, cap;                   /* bytes */
    uint32_t salt;                       /* which file: mixed into the hash */
    bool hashing;
    struct hash128 *hash;                /* per sector of cap */
    struct hash128 sum;
    struct sim_undo *undo;
    size_t undo_count, undo_cap;
    bool undoing;                        /* changes are logged */
};

void sim_disk_init(struct sim_disk *d, uint32_t salt);
void sim_disk_fini(struct sim_disk *d);
/* Length 0, no log. */
void sim_disk_reset(struct sim_disk *d);
/* Turns hashing on or off; on: hashes everything that is there. */
void sim_disk_set_hashing(struct sim_disk *d, bool on);

/* -EFBIG past SIM_DISK_MAX. Writing past `len` makes the file longer. */
MUST_USE int sim_disk_write(struct sim_disk *d, uint64_t off, const void *buf, uint64_t len);
/* Zeroes [off, off+len) as far as it lies inside the file. */
void sim_disk_zero(struct sim_disk *d, uint64_t off, uint64_t len);
MUST_USE int sim_disk_set_len(struct sim_disk *d, uint64_t len);
/* Zeros past the end. */
void sim_disk_read(const struct sim_disk *d, uint64_t off, void *buf, uint64_t len);

/* Puts one whole sector that lies inside the file (content NULL: zeros) with its known hash (see
 * sim_sector_hash); for the explorer. The part of the sector behind `len` stays zero. */
void sim_disk_put(struct sim_disk *d, uint64_t sector, const uint8_t *content, struct hash128 h);
struct hash128 sim_sector_hash(uint32_t salt, uint64_t sector, const uint8_t *content);

/* Undo: everything changed since the mark is taken back. Marks nest. */
typedef size_t sim_mark;
sim_mark sim_disk_mark(struct sim_disk *d);          /* starts logging */
void sim_disk_undo(struct sim_disk *d, sim_mark m);
/* Keeps the changes, empties the log and stops logging. */
void sim_disk_commit(struct sim_disk *d);

#endif
