/* SPDX-License-Identifier: MIT
 *
 * event.h: moments in the work of a format that somebody may want to know of: the filter blkdebug below it (FEATURES 3.052, 3.053).
 *
 * Whoever is about to do what a row says calls stor_event at the store of the image, whatever file it is that is read or written: formats say it of
 * their tables, meta/ of blocks and regions whose kind names an event, graph/ of data. Nothing is decided by it; it may suspend the caller, for any time.
 * A store that nobody listens at costs a look at one pointer.
 *
 * Invariants
 *   V1  An event is raised in front of the request that it speaks of, by the coroutine that makes it (pwritev_done and those with "after": behind it).
 *   V2  stor_event is called only where the caller may suspend. `events` is set before a store is used, and constant then.
 * Concurrency  Any loop, with any lock of the caller held: whoever listens takes none of them (docs/internals/concurrency.md).
 */
#ifndef STOR_EVENT_H
#define STOR_EVENT_H

#include "base/assert.h"
#include "stor/stor.h"

/* X(name, the peer's word, what is about to happen; "": nothing here does that) */
#define STOR_EVENT_ROWS(X) \
    X(L1_UPDATE, "l1_update", "sectors of the L1 table are written") \
    X(L1_GROW_ALLOC_TABLE, "l1_grow_alloc_table", "space for a larger L1 table is taken") \
    X(L1_GROW_WRITE_TABLE, "l1_grow_write_table", "a larger L1 table is written") \
    X(L1_GROW_ACTIVATE_TABLE, "l1_grow_activate_table", "the header switches to it") \
    X(L2_LOAD, "l2_load", "a part of an L2 table is read into the cache") \
    X(L2_UPDATE, "l2_update", "changed sectors of L2 tables are written") \
    X(L2_UPDATE_COMPRESSED, "l2_update_compressed", "compressed clusters are entered into an L2 table, in memory") \
    X(L2_ALLOC_COW_READ, "l2_alloc_cow_read", "an L2 table that is shared is read, to be copied") \
    X(L2_ALLOC_WRITE, "l2_alloc_write", "a new L2 table is written or zeroed") \
    X(READ_AIO, "read_aio", "data is read") \
    X(READ_BACKING_AIO, "read_backing_aio", "data is read that a layer below has") \
    X(READ_COMPRESSED, "read_compressed", "a compressed cluster is read") \
    X(WRITE_AIO, "write_aio", "data is written") \
    X(WRITE_COMPRESSED, "write_compressed", "compressed clusters are written") \
    X(VMSTATE_LOAD, "vmstate_load", "a part of the VM state is read") \
    X(VMSTATE_SAVE, "vmstate_save", "a part of the VM state is written") \
    X(COW_READ, "cow_read", "what surrounds a first write is read") \
    X(COW_WRITE, "cow_write", "what was read around a first write is written, with it") \
    X(REFTABLE_LOAD, "reftable_load", "the refcount table is read, at the opening") \
    X(REFTABLE_GROW, "reftable_grow", "a larger refcount table is made") \
    X(REFTABLE_UPDATE, "reftable_update", "") \
    X(REFBLOCK_LOAD, "refblock_load", "a part of a refcount block is read into the cache") \
    X(REFBLOCK_UPDATE, "refblock_update", "") \
    X(REFBLOCK_UPDATE_PART, "refblock_update_part", "changed sectors of refcount blocks are written") \
    X(REFBLOCK_ALLOC, "refblock_alloc", "the file grows, and with it what is counted") \
    X(REFBLOCK_ALLOC_HOOKUP, "refblock_alloc_hookup", "entries for new refcount blocks are written") \
    X(REFBLOCK_ALLOC_WRITE, "refblock_alloc_write", "new refcount blocks are written") \
    X(REFBLOCK_ALLOC_WRITE_BLOCKS, "refblock_alloc_write_blocks", "the same, where the refcount table grows as well") \
    X(REFBLOCK_ALLOC_WRITE_TABLE, "refblock_alloc_write_table", "a larger refcount table is written") \
    X(REFBLOCK_ALLOC_SWITCH_TABLE, "refblock_alloc_switch_table", "the header switches to it") \
    X(CLUSTER_ALLOC, "cluster_alloc", "clusters are taken") \
    X(CLUSTER_ALLOC_BYTES, "cluster_alloc_bytes", "space for compressed clusters is taken") \
    X(CLUSTER_FREE, "cluster_free", "the counts of clusters are lowered that lost an owner") \
    X(FLUSH_TO_OS, "flush_to_os", "a flush begins") \
    X(FLUSH_TO_DISK, "flush_to_disk", "the flush of the file that ends it") \
    X(PWRITEV_RMW_HEAD, "pwritev_rmw_head", "the first block of a write that covers it in part is read") \
    X(PWRITEV_RMW_AFTER_HEAD, "pwritev_rmw_after_head", "it was read") \
    X(PWRITEV_RMW_TAIL, "pwritev_rmw_tail", "the last block of such a write is read") \
    X(PWRITEV_RMW_AFTER_TAIL, "pwritev_rmw_after_tail", "it was read") \
    X(PWRITEV, "pwritev", "a write goes on to what lies below the filter itself") \
    X(PWRITEV_ZERO, "pwritev_zero", "the same, of a request for zeros") \
    X(PWRITEV_DONE, "pwritev_done", "either has ended") \
    X(EMPTY_IMAGE_PREPARE, "empty_image_prepare", "an image is emptied") \
    X(L1_SHRINK_WRITE_TABLE, "l1_shrink_write_table", "L1 entries that a smaller size cut off are written") \
    X(L1_SHRINK_FREE_L2_CLUSTERS, "l1_shrink_free_l2_clusters", "their L2 tables are freed") \
    X(COR_WRITE, "cor_write", "copy-on-read writes down what it has read") \
    X(CLUSTER_ALLOC_SPACE, "cluster_alloc_space", "what surrounds a first write is to be zeros: written, zeroed, or known to be there; free clusters are zeroed ahead")

enum stor_event_kind {
    STOR_EV_NONE,                        /* "none": it never happens; rules that name it hold from the beginning */
#define X(name, word, text) STOR_EV_##name,
    STOR_EVENT_ROWS(X)
#undef X
    STOR_EV_COUNT
};

struct stor_events { void (*raise)(struct co *co, struct stor_events *e, enum stor_event_kind what); };

static inline void stor_event(struct co *co, const struct stor *s, enum stor_event_kind what)
{
    if (UNLIKELY(s->events != NULL))
        s->events->raise(co, s->events, what);
}

#endif
