/* SPDX-License-Identifier: MIT
 *
 * slab.h: memory of cached blocks. Private to meta/.
 *
 * META_CHUNK_BLOCKS blocks lie side by side in a mapping of their own, their headers apart from them: a block costs its bytes
 * and its header, however it is aligned, and memory that is not used any more goes back to the system.
 */
#ifndef META_SLAB_H
#define META_SLAB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct meta_block;
struct meta_chunk;

#define META_CHUNK_BLOCKS 64u

struct meta_slab {
    uint32_t block_bytes;                /* constant: a power of two, >= 512 */
    struct meta_chunk *partial, *full;   /* rings: some or all blocks are free; none is */
    struct meta_chunk *spare;            /* one in `partial` all of whose blocks are free */
    uint64_t partial_count, full_count;
};

void meta_slab_init(struct meta_slab *s, uint32_t block_bytes);
/* Every block was given back. */
void meta_slab_fini(struct meta_slab *s);
/* A block whose header is zero but for `words` and `chunk`; the words hold anything and are aligned to min(block_bytes, page).
 * NULL: no memory. */
struct meta_block *meta_slab_take(struct meta_slab *s);
void meta_slab_give(struct meta_slab *s, struct meta_block *b);
/* Gives the memory of free blocks back to the system, in up to `most` chunks; those that it has looked at go behind the others.
 * Call it for partial_count of them to have seen all. */
void meta_slab_trim(struct meta_slab *s, uint64_t most);
/* Bytes of memory that the blocks take now, the free ones that were not trimmed included. */
uint64_t meta_slab_bytes(const struct meta_slab *s);

#endif
