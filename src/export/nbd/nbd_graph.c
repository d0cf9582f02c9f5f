/* SPDX-License-Identifier: MIT
 *
 * nbd_graph.c: a node of the graph as the disk of an NBD export.
 *
 * Purpose      Maps struct nbd_disk_ops to graph/graph.h, one to one.
 * Owns         nothing; the node belongs to whoever made the export.
 * Invariants   none beyond those of graph.h, and of struct nbd_disk_ops: a status costs a bounded amount of work.
 * Concurrency  any loop, as graph.h allows.
 * Failure      the graph's -errno.
 * Tests        tests/nbd against `byre serve`
 */
#include "export/nbd/nbd.h"
#include "graph/graph.h"

static uint64_t disk_length(void *disk)
{
    return graph_length(disk);
}

static int disk_read(struct co *co, void *disk, struct iov v, uint64_t off)
{
    return graph_read(co, disk, v, off);
}

static int disk_write(struct co *co, void *disk, struct iov v, uint64_t off, unsigned flags)
{
    return graph_write(co, disk, v, off, flags & NBD_DISK_FUA ? GRAPH_FUA : 0);
}

static int disk_zero(struct co *co, void *disk, uint64_t off, uint64_t len, unsigned flags)
{
    unsigned f = (flags & NBD_DISK_FUA ? GRAPH_FUA : 0) | (flags & NBD_DISK_UNMAP ? GRAPH_UNMAP : 0) |
                 (flags & NBD_DISK_NO_FALLBACK ? GRAPH_NO_FALLBACK : 0);
    return graph_zero(co, disk, off, len, f);
}

static int disk_discard(struct co *co, void *disk, uint64_t off, uint64_t len)
{
    return graph_discard(co, disk, off, len);
}

static int disk_flush(struct co *co, void *disk)
{
    return graph_flush(co, disk);
}

static int disk_status(struct co *co, void *disk, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    struct graph_status st;
    unsigned looks = NBD_STATUS_LOOKS;
    int r = graph_status_some(co, disk, off, len, &looks, &st);
    if (!r)
        *ret = (struct nbd_disk_status){ st.len, st.data, st.zero, st.present ? st.depth + 1 : 0, looks };
    return r;
}

const struct nbd_disk_ops nbd_graph_ops = {
    .length = disk_length,
    .read = disk_read,
    .write = disk_write,
    .zero = disk_zero,
    .discard = disk_discard,
    .flush = disk_flush,
    .status = disk_status,
};

/* ---- with bitmaps, a part of the disk, or write-through ---- */

static uint64_t bm_length(void *disk)
{
    const struct nbd_graph_disk *d = disk;
    uint64_t all = graph_length(d->node), rest = all > d->offset ? all - d->offset : 0;
    return d->length && d->length < rest ? d->length : rest;
}

static unsigned through(const struct nbd_graph_disk *d, unsigned flags)
{
    return d->writethrough ? flags | NBD_DISK_FUA : flags;
}

static int bm_read(struct co *co, void *disk, struct iov v, uint64_t off)
{
    const struct nbd_graph_disk *d = disk;
    return disk_read(co, d->node, v, d->offset + off);
}

static int bm_write(struct co *co, void *disk, struct iov v, uint64_t off, unsigned flags)
{
    const struct nbd_graph_disk *d = disk;
    return disk_write(co, d->node, v, d->offset + off, through(d, flags));
}

static int bm_zero(struct co *co, void *disk, uint64_t off, uint64_t len, unsigned flags)
{
    const struct nbd_graph_disk *d = disk;
    return disk_zero(co, d->node, d->offset + off, len, through(d, flags));
}

static int bm_discard(struct co *co, void *disk, uint64_t off, uint64_t len)
{
    const struct nbd_graph_disk *d = disk;
    int r = disk_discard(co, d->node, d->offset + off, len);
    return r || !d->writethrough ? r : disk_flush(co, d->node);
}

static int bm_flush(struct co *co, void *disk)
{
    return disk_flush(co, ((struct nbd_graph_disk *)disk)->node);
}

static int bm_status(struct co *co, void *disk, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    const struct nbd_graph_disk *d = disk;
    return disk_status(co, d->node, d->offset + off, len, ret);
}

static int bm_dirty(struct co *co, void *disk, unsigned i, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    const struct nbd_graph_disk *part = disk;
    const struct dirty *d = part->bitmaps[i]->bits;
    uint64_t end;
    off += part->offset;
    if (off >= d->size) {                /* the rounded-up end of the last sector */
        *ret = (struct nbd_disk_status){ .len = len, .data = d->size && dirty_test(d, d->size - 1) };
        return 0;
    }
    bool dirty = dirty_run(d, off, off + len, &end);
    *ret = (struct nbd_disk_status){ .len = end - off, .data = dirty };
    return 0;
}

const struct nbd_disk_ops nbd_graph_bitmap_ops = {
    .length = bm_length,
    .read = bm_read,
    .write = bm_write,
    .zero = bm_zero,
    .discard = bm_discard,
    .flush = bm_flush,
    .status = bm_status,
    .dirty = bm_dirty,
};
