/* SPDX-License-Identifier: MIT
 *
 * disk.c: requests through the graph and qcow2, down to a store in flat memory.
 *
 * Purpose      See the table at the end.
 * Owns         Nothing.
 * Invariants   None.
 * Order        None.
 * Concurrency  One thread.
 * Failure      None.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 8, MANY_LAYERS = 64, BLOCK = 4096 };

static void image_make(struct co *co, unsigned i, uint64_t size, uint64_t cap)
{
    char below[16];
    snprintf(below, sizeof below, "f%u", i - 1);
    struct fmt_create_opts o = { .size = size, .version = 3, .backing_file = i ? below : NULL, .backing_fmt = i ? "qcow2" : NULL };
    struct stor *s = flat_new(cap);
    OK(fmt_by_name("qcow2")->create(co, s, &o, NULL));
    flat_set(i, s);
}

static void image_open(struct co *co, struct disk *d, unsigned i, bool alone)
{
    char name[16];
    snprintf(name, sizeof name, "f%u", i);
    struct graph_opts go = { .opener = &flat_opener };
    struct graph_open_opts o = { .filename = name, .format = "qcow2", .no_backing = alone };
    OK(graph_new(co_loop(co), &go, &d->g, NULL));
    OK(graph_open(co, d->g, &o, &d->n, NULL));
}

void disk_open(struct co *co, struct disk *d, uint64_t size)
{
    image_make(co, 0, size, size * 2 + (1u << 20));
    image_open(co, d, 0, false);
}

void disk_close(struct co *co, struct disk *d)
{
    OK(graph_close(co, d->n));
    graph_free(d->g);
}

static void write_at(struct co *co, struct disk *d, uint64_t off, uint64_t len)
{
    static uint8_t bytes[CLUSTER];
    struct iovec slot;
    memset(bytes, 0x55, sizeof bytes);
    OK(graph_write(co, d->n, iov_one(&slot, bytes, len), off, 0));
}

void disk_fill(struct co *co, struct disk *d)
{
    for (uint64_t off = 0; off < DISK_BYTES; off += CLUSTER)
        write_at(co, d, off, CLUSTER);
}

static uint64_t scattered(uint64_t i) { return i * 100003 % (DISK_BYTES / BLOCK) * BLOCK; }

static void lookups(struct co *co, uint64_t n)
{
    struct disk d;
    struct fmt_extent e;
    disk_open(co, &d, DISK_BYTES);
    disk_fill(co, &d);
    epoch_token t = epoch_enter(d.n->im->epoch, co_loop(co));
    for (uint64_t i = 0; i < n; i++)
        OK(d.n->im->ops->map(co, d.n->im, scattered(i), BLOCK, &e));
    epoch_leave(d.n->im->epoch, co_loop(co), t);
    disk_close(co, &d);
}

static void in_place(struct co *co, uint64_t n, bool write)
{
    static uint8_t buf[BLOCK];
    struct disk d;
    struct iovec slot;
    disk_open(co, &d, DISK_BYTES);
    disk_fill(co, &d);
    for (uint64_t i = 0; i < n; i++) {
        struct iov v = iov_one(&slot, buf, BLOCK);
        OK(write ? graph_write(co, d.n, v, scattered(i), 0) : graph_read(co, d.n, v, scattered(i)));
    }
    disk_close(co, &d);
}

static void reads(struct co *co, uint64_t n) { in_place(co, n, false); }
static void writes(struct co *co, uint64_t n) { in_place(co, n, true); }

/* Each write needs a cluster. */
static void first_writes(struct co *co, uint64_t n)
{
    static uint8_t buf[BLOCK];
    struct disk d;
    struct iovec slot;
    disk_open(co, &d, UINT64_C(256) << 20);
    ASSERT(n <= 4096);
    for (uint64_t i = 0; i < n; i++)
        OK(graph_write(co, d.n, iov_one(&slot, buf, BLOCK), i * CLUSTER, 0));
    disk_close(co, &d);
}

/* Cluster k lies in layer k * 37 % layers. */
static void chain_make(struct co *co, unsigned layers)
{
    struct disk d;
    for (unsigned i = 0; i < layers; i++) {
        image_make(co, i, DISK_BYTES, DISK_BYTES / layers * 2 + (1u << 20));
        image_open(co, &d, i, true);
        for (uint64_t k = 0; k < DISK_BYTES / CLUSTER; k++)
            if (k * 37 % layers == i)
                write_at(co, &d, k * CLUSTER, CLUSTER);
        disk_close(co, &d);
    }
}

static void chain_reads(struct co *co, uint64_t n)
{
    static uint8_t buf[BLOCK];
    struct disk d;
    struct iovec slot;
    chain_make(co, LAYERS);
    image_open(co, &d, LAYERS - 1, false);
    for (uint64_t i = 0; i < DISK_BYTES / CLUSTER; i++)         /* the index learns of each */
        OK(graph_read(co, d.n, iov_one(&slot, buf, BLOCK), i * CLUSTER));
    for (uint64_t i = 0; i < n; i++)
        OK(graph_read(co, d.n, iov_one(&slot, buf, BLOCK), scattered(i)));
    disk_close(co, &d);
}

/* Nothing is known at first; each cluster is read once, scattered; then all is forgotten. */
static void chain_misses(struct co *co, uint64_t n)
{
    enum { CLUSTERS = DISK_BYTES / CLUSTER };
    static uint8_t buf[BLOCK];
    struct disk d;
    struct iovec slot;
    chain_make(co, MANY_LAYERS);
    image_open(co, &d, MANY_LAYERS - 1, false);
    for (uint64_t i = 0; i < n; i++) {
        OK(graph_read(co, d.n, iov_one(&slot, buf, BLOCK), i * 149 % CLUSTERS * CLUSTER));
        if (i % CLUSTERS != CLUSTERS - 1)
            continue;
        graph_mapping_change_begin(co, d.n->backing, 0, DISK_BYTES);
        graph_mapping_change_end(d.n->backing);
    }
    disk_close(co, &d);
}

const struct micro micro_disk[] = {
    { "map", "qcow2 says where 4 KiB are", lookups },
    { "read-4k", "4 KiB are read in place", reads },
    { "write-4k", "4 KiB are written in place", writes },
    { "write-new", "4 KiB are written into a new cluster", first_writes },
    { "read-chain", "4 KiB are read from a chain of 8 layers", chain_reads },
    { "miss-chain", "4 KiB are read from a chain of 64 layers, of a cluster that the index does not know yet", chain_misses },
    { NULL },
};
