/* SPDX-License-Identifier: MIT
 *
 * switch_faults.c: an image is opened in another way (src/graph/mode.c), and every n-th call fails, or allocation.
 *
 * Purpose      An image with a persistent bitmap, which is open for reading, is opened for writing, written, and open for reading again, as the base of a
 *              commit is. When that fails the node goes on as it was: what it shows is what was there, nothing else is left open or allocated, and the
 *              next try succeeds. With every second seed its data is in a file of its own; the node has a bitmap of its own with two of four.
 * Usage        switch-faults [FIRST [LAST]]
 * Owns         A simulated machine.
 * Invariants   None.
 * Concurrency  One thread; two loops of the machine.
 * Failure      Exit 1 and what is wrong; exit 2: the test itself is broken.
 * Tests        tests/faults/test_faults.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../crash/crash_files.h"
#include "sim/workload.h"

#define SECTORS 32u
#define FIRST_GEN 3u
#define GEN 7u

enum { IMAGE, DATA };
static const char *const names[CRASH_FILES] = { "image", "data", "unused", "unused-too" };

struct test { struct crash_files f; struct fmt_host host; bool data_file, own; uint8_t *buf; };

static int open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    return sim_open(co, ((struct test *)arg)->f.w, name, false, ret_s);
}

static int put(struct co *co, struct test *t, struct graph_node *n, uint32_t gen, unsigned first, unsigned count)
{
    struct iovec slot;
    for (unsigned i = 0; i < count; i++)
        sim_sector_fill(t->buf + i * SIM_SECTOR, gen, first + i);
    return graph_write(co, n, iov_one(&slot, t->buf, count * SIM_SECTOR), first * SIM_SECTOR, 0);
}

static int fill(struct co *co, void *arg, struct graph_node *n, unsigned i)
{
    const struct graph_bitmap_spec spec = { .name = "kept", .granularity = 512, .persistent = true };
    struct byre_err err = { 0 };
    int r = i == IMAGE ? graph_bitmap_add(co, n, &spec, &err) : 0;
    return r || i != IMAGE ? r : put(co, arg, n, FIRST_GEN, 0, SECTORS);
}

/* written: sectors from the first one on that hold, or may hold, what is new. */
static int look(struct co *co, struct test *t, struct graph_node *n, unsigned must, unsigned may)
{
    struct iovec slot;
    int r = graph_read(co, n, iov_one(&slot, t->buf, SECTORS * SIM_SECTOR), 0);
    for (unsigned i = 0; i < SECTORS && r == 0; i++) {
        uint32_t gen = sim_sector_gen(t->buf + i * SIM_SECTOR, i);
        if (!(gen == GEN && i < may) && !(gen == FIRST_GEN && i >= must))
            return crash_never(&t->f, "sector %u holds %d", i, (int)gen);
    }
    return r;
}

/* The second time it is done: a call fails once. But what could not be written or flushed once is never said to be durable later. */
static int change(struct co *co, struct test *t, struct graph_node *n, bool write)
{
    struct byre_err err = { 0 };
    uint64_t fired = t->f.w->faults.fired;
    int r = write ? graph_make_header_writable(co, n, &err) : graph_make_read_only(co, n, &err);
    if (r && t->f.w->faults.fired == fired && !(t->f.w->faults.kinds & (SIM_C_WRITE | SIM_C_FLUSH)))
        return crash_never(&t->f, "it is refused, though no call has failed: %s", err.text);
    return r;
}

static int there_and_back(struct co *co, struct test *t, struct graph_node *n)
{
    unsigned written = 0;
    int r = look(co, t, n, 0, 0);
    for (unsigned i = 0; i < 2 && !t->f.broken; i++) {
        if (change(co, t, n, true)) {
            if (look(co, t, n, 0, written))
                r = -EIO;
            if (change(co, t, n, true))
                return -EIO;
        }
        int failed = put(co, t, n, GEN, 0, 4 + i);
        written = failed ? written : 4 + i;
        if (look(co, t, n, written, 4 + i))
            r = -EIO;
        if (change(co, t, n, false) && change(co, t, n, false))
            r = -EIO;
    }
    return r;
}

static int record(struct co *co, void *arg)
{
    struct test *t = arg;
    const struct graph_open_opts o = { .filename = names[IMAGE], .format = "qcow2", .read_only = true, .discard = true };
    const struct graph_bitmap_spec spec = { .name = "own", .granularity = 1024 };
    struct byre_err err = { 0 };
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(t->f.w, co, &g, &err);
    if (r)
        return r;
    r = graph_open(co, g, &o, &n, &err);
    if (r == 0) {
        r = t->own ? graph_bitmap_add(co, n, &spec, &err) : 0;
        int there = there_and_back(co, t, n);
        int closed = graph_close(co, n);
        r = r ? r : there ? there : closed;
    }
    crash_graph_free(co, g);
    return r;
}

static int judge(struct co *co, void *arg)
{
    struct test *t = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(t->f.w, co, &g, NULL);
    if (r == 0)
        r = crash_open(co, &t->f, g, IMAGE, true, &n);
    if (r == 0) {
        r = look(co, t, n, 0, SECTORS);
        (void)!graph_close(co, n);
    }
    crash_graph_free(co, g);
    return r ? r : crash_check(co, &t->f, IMAGE);
}

static int seed_co(uint64_t seed, uint64_t *ret_states)
{
    static const struct crash_fault faults[] = {
        { SIM_C_READ, -EIO, false, 0 }, { SIM_C_WRITE, -EIO, false, 0 }, { SIM_C_FLUSH, -EIO, false, 0 }, { SIM_C_OPEN | SIM_C_LOCK, -EACCES, false, 0 }, { SIM_C_LENGTH | SIM_C_EXTENT, -EIO, false, 0 },
        { SIM_C_ALLOC, -ENOMEM, false, 0 },
    };
    static struct test t;
    t = (struct test){ .data_file = seed % 2, .own = seed / 2 % 2, .buf = aligned_alloc(4096, SECTORS * SIM_SECTOR) };
    t.host = (struct fmt_host){ .open_data = open_data, .arg = &t };
    t.f.names = names;
    t.f.filled = 1;
    for (unsigned i = 0; i < CRASH_FILES; i++)
        t.f.how[i] = (struct fmt_create_opts){ .size = SECTORS * SIM_SECTOR };
    struct fmt_create_opts *o = &t.f.how[IMAGE];
    *o = (struct fmt_create_opts){ .size = SECTORS * SIM_SECTOR, .version = 3, .refcount_bits = 16, .cluster_size = 4096, .host = &t.host };
    if (t.data_file)
        o->data_file = (char *)(uintptr_t)names[DATA];
    int r = crash_files_new(&t.f, seed, fill, &t);
    if (r)
        fprintf(stderr, "the files cannot be made: %d %s\n", r, t.f.why);
    else
        r = crash_every_fault(&(struct crash_test){ &t.f, record, judge, &t }, faults, sizeof faults / sizeof faults[0], seed, NULL, ret_states);
    crash_files_free(&t.f);
    free(t.buf);
    return r;
}

int main(int argc, char **argv) { return crash_seeds(argc, argv, seed_co); }
