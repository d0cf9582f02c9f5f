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

enum { LAYERS = 8, BLOCK = 4096 };

static void image_make(struct co *co, unsigned i, uint64_t size)
{
    char below[16];
    snprintf(below, sizeof below, "f%u", i - 1);
    struct fmt_create_opts o = { .size = size, .version = 3, .backing_file = i ? below : NULL, .backing_fmt = i ? "qcow2" : NULL };
    struct stor *s = flat_new(size * 2 + (1u << 20));
    OK(fmt_by_name("qcow2")->create(co, s, &o, NULL));
    flat_set(i, s);
}

static void image_open(struct co *co, struct disk *d, unsigned i, bool read_only)
{
    char name[16];
    snprintf(name, sizeof name, "f%u", i);
    struct graph_opts go = { .opener = &flat_opener };
    struct graph_open_opts o = { .filename = name, .format = "qcow2", .read_only = read_only };
    OK(graph_new(co_loop(co), &go, &d->g, NULL));
    OK(graph_open(co, d->g, &o, &d->n, NULL));
}

void disk_open(struct co *co, struct disk *d, uint64_t size)
{
    image_make(co, 0, size);
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

/* Cluster k lies in layer k % LAYERS. */
static void chain_reads(struct co *co, uint64_t n)
{
    static uint8_t buf[BLOCK];
    struct disk d;
    struct iovec slot;
    for (unsigned i = 0; i < LAYERS; i++) {
        image_make(co, i, DISK_BYTES);
        image_open(co, &d, i, false);
        for (uint64_t off = i * CLUSTER; off < DISK_BYTES; off += LAYERS * CLUSTER)
            write_at(co, &d, off, CLUSTER);
        disk_close(co, &d);
    }
    image_open(co, &d, LAYERS - 1, false);
    for (uint64_t i = 0; i < DISK_BYTES / CLUSTER; i++)         /* the index learns of each */
        OK(graph_read(co, d.n, iov_one(&slot, buf, BLOCK), i * CLUSTER));
    for (uint64_t i = 0; i < n; i++)
        OK(graph_read(co, d.n, iov_one(&slot, buf, BLOCK), scattered(i)));
    disk_close(co, &d);
}

const struct micro micro_disk[] = {
    { "map", "qcow2 says where 4 KiB are", lookups },
    { "read-4k", "4 KiB are read in place", reads },
    { "write-4k", "4 KiB are written in place", writes },
    { "write-new", "4 KiB are written into a new cluster", first_writes },
    { "read-chain", "4 KiB are read from a chain of 8 layers", chain_reads },
    { NULL },
};
